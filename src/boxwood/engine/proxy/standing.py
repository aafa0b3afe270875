"""What holds for VMs now: policies and secrets, as the server has told them, and what is open under them.

A change reaches what is open: whatever would not be let through any more, or not in the same way, is cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from boxwood.engine.policies import Policies, all_spellings, parse
from boxwood.engine.proxy.redaction import Hidden

MOST_OPEN = 1024  # of a VM at once: each takes a connection to a server, and the proxy's descriptors are for all
_NOTHING = parse({"nothing": {"type": "outbound", "priority": 0, "action": "deny"}})


class Open(Protocol):
    """Something that a policy has let through, and that goes on."""

    def holds(self, policies: Policies) -> bool:
        """Would it be let through by these, in the same way?"""

    def cut(self) -> None: ...


class Standing:
    """Of one VM. Secrets are never shown, logged or put into an error."""

    def __init__(self) -> None:
        self.policies = Policies()
        self._secrets: Mapping[str, str] = {}
        self.hidden: tuple[Hidden, ...] = ()
        self.changes = 0  # of what is hidden
        self._open: set[Open] = set()
        self.held = 0  # bytes of bodies that are read whole, or wait for more of what may be a secret
        self.turn = asyncio.Lock()  # whose answer is looked through for secrets: one piece at a time

    def put(self, policies: Policies, secrets: Mapping[str, str]) -> None:
        """Malformed: nothing has changed."""
        found = all_spellings("secrets", secrets.values())
        before = {one.secret: one for one in self.hidden}
        hidden = tuple(before.get(secret) or Hidden(secret) for secret in sorted(found))
        self.policies, self._secrets = policies, dict(secrets)
        if hidden != self.hidden:
            self.hidden, self.changes = hidden, self.changes + 1
        for one in [one for one in self._open if not one.holds(policies)]:
            one.cut()

    def secret(self, name: str) -> str | None:
        return self._secrets.get(name)

    @property
    def is_full(self) -> bool:
        return len(self._open) >= MOST_OPEN

    def opened(self, one: Open) -> None:
        self._open.add(one)

    def closed(self, one: Open) -> None:
        self._open.discard(one)


class Standings:
    """Of all VMs. A VM that the server has not told of has none, and nothing is let through."""

    def __init__(self) -> None:
        self._by_vm: dict[str, Standing] = {}
        self._news = asyncio.Event()

    async def of(self, vm: str, seconds: float) -> Standing | None:
        """The server has so long to tell: this process may be a new one."""
        try:
            async with asyncio.timeout(seconds):
                while vm not in self._by_vm:
                    await self._news.wait()
        except TimeoutError:
            return None
        return self._by_vm[vm]

    def put(self, vm: str, policies: Policies, secrets: Mapping[str, str]) -> None:
        """Malformed: nothing has changed."""
        standing = self._by_vm.get(vm) or Standing()
        standing.put(policies, secrets)
        self._by_vm[vm] = standing
        self._news.set()
        self._news = asyncio.Event()

    def drop(self, vm: str) -> None:
        """It has none any more that need us: what is open is cut, and can be opened again without us."""
        if (standing := self._by_vm.pop(vm, None)) is not None:
            standing.put(_NOTHING, {})
