"""Gates of inbound rules: somebody outside is asked whether a request may come in, before it reaches the VM.

The engine asks, by the way that boxes' connections go: what a box may not reach, private networks and the host first of
all, no gate is asked at.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from boxwood.core.errors import BadRequest, Forbidden, Unavailable
from boxwood.core.shares import Shares
from boxwood.core.tasks import Tasks
from boxwood.engine.api import Engine, EngineError
from boxwood.engine.policies import Rule
from boxwood.engine.proxy.message import BadMessage
from boxwood.engine.proxy.questions import MOST_BODY, MOST_HEAD, Question, question
from boxwood.engine.proxy.rewriting import Meaning, NoSecret
from boxwood.store.vms import VMRow

log = logging.getLogger(__name__)
OF_VM, LEAST, OF_ALL = 128, 4, 1024  # questions at once
BYTES_OF_VM, BYTES_OF_ALL = 16 << 20, 128 << 20  # of them: they wait here and in the proxy as long as gates please


class Gates:
    """`secrets_of(row, names)`: what they stand for."""

    def __init__(
        self, engine: Engine, secrets_of: Callable[[VMRow, frozenset[str]], dict[str, str]], tasks: Tasks
    ) -> None:
        self._engine = engine
        self._secrets_of = secrets_of
        self._tasks = tasks
        self._shares = Shares(of_vm=OF_VM, least=LEAST, of_all=OF_ALL)
        self._bytes = Shares(of_vm=BYTES_OF_VM, least=MOST_HEAD + MOST_BODY, of_all=BYTES_OF_ALL)

    async def check(self, row: VMRow, rule: Rule, meaning: Meaning) -> None:
        """Forbidden: it does not let this in; BadRequest: what was sent cannot be put into the question; Unavailable:
        too many are asked at once, or nobody can ask."""
        gate = rule.action.gate
        assert gate is not None
        own = replace(meaning, secret=self._secrets_of(row, gate.secrets).get)  # for nothing else
        try:
            asked = question(gate, own)
        except NoSecret:
            raise Forbidden(f"the rule {rule.ident} of this VM has a gate whose secret has no value") from None
        except BadMessage as error:
            raise BadRequest(f"the rule {rule.ident} of this VM: {error}") from None
        self._take(row, rule, asked)
        # Whoever goes away does not make room for another question: this one is asked to its end.
        if refusal := await self._tasks.finish(self._ask(row, rule, asked)):
            raise Forbidden(f"the rule {rule.ident} of this VM refuses this: {refusal}")

    def _take(self, row: VMRow, rule: Rule, asked: Question) -> None:
        """Unavailable."""
        if self._shares.take(row.id, 1):
            if self._bytes.take(row.id, asked.size):
                return
            self._shares.give(row.id, 1)
        raise Unavailable(f"the rule {rule.ident} of this VM: too many of its gates are asked at once: try again")

    async def _ask(self, row: VMRow, rule: Rule, asked: Question) -> str:
        try:
            return await self._engine.ask_gate(asked)
        except (EngineError, OSError) as error:
            log.warning("VM %s, the gate of the rule %s: %s", row.id, rule.ident, error)
            raise Unavailable(f"the rule {rule.ident} of this VM has a gate that cannot be asked now") from None
        finally:
            self._shares.give(row.id, 1)
            self._bytes.give(row.id, asked.size)
