"""The steps of a session, in the order in which they ended, kept as records: several in each, so that they are few.

A step's number is its place in this order; it is never given to another step, unless the session is brought back to an
earlier one. What a step put out is kept as far as HISTORY_BYTES of each stream.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct

from boxwood.core.core import Core
from boxwood.core.errors import CoreError, NotFound
from boxwood.core.model import Caller, Record

KIND = "arl.history"
MOST_STEPS = 10_000  # of a session: those before are forgotten
MOST_BYTES = 16 << 20
HISTORY_BYTES = 256 << 10  # of each stream of a step
INPUT_BYTES = 1 << 20
CHUNK_STEPS = 16
CHUNK_BYTES = 32 << 10
KEPT_SECONDS = 30 * 86400.0  # a session may live that long without losing its beginning
_MOST_CHUNKS = 1_000_000
log = logging.getLogger("boxwood.server")


class Step(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`input`: as it was received. `bytes`: of all that was put out, where that is more than is kept here. `content`:
    of a small file that was uploaded, in base64, so that the step can be done again. `same_as`: it wrote
    nothing, so the snapshot of that step shows what it left."""

    index: int
    name: str
    input: dict[str, Any]
    timestamp: str
    duration_ms: int = 0
    stdout: str = ""
    stderr: str = ""
    exit_code: int = 0
    bytes: int = 0
    truncated: bool = False
    content: str | None = None
    same_as: int | None = None
    repeatable: bool = True  # False: too big to be kept whole, so it cannot be done again


class _Chunk(Struct):
    steps: list[Step]


def steps_of(record: Record) -> list[Step]:
    return msgspec.convert(record.body, _Chunk).steps


class History:
    """Of one session. Its caller sees to it that only one thing is asked of it at a time, reading aside."""

    def __init__(self, core: Core, caller: Caller, session_id: str) -> None:
        self._core = core
        self._caller = caller
        self._session_id = session_id
        self._sizes: dict[str, int] | None = None  # of the chunks by their names, in order
        self._steps = 0  # in the last chunk
        self.next_index = 0

    async def load(self) -> None:
        """What is on record. Once is enough."""
        if self._sizes is not None:
            return
        records = await self._records()
        chunks = {record.name: steps_of(record) for record in records}
        self._sizes = {name: sum(map(_size, steps)) for name, steps in chunks.items()}
        if records:
            last = chunks[records[-1].name]
            self._steps = len(last)
            self.next_index = last[-1].index + 1 if last else int(records[-1].name)

    async def _records(self) -> tuple[Record, ...]:
        return await self._core.records.list(self._caller, KIND, self._session_id, limit=_MOST_CHUNKS)

    async def all(self, until: int | None = None) -> list[Step]:
        """Up to a number, it included."""
        found = [step for record in await self._records() for step in steps_of(record)]
        return [step for step in found if until is None or step.index <= until]

    async def append(self, step: Step) -> None:
        """With the number `next_index`. A history that cannot be kept harms no session."""
        assert self._sizes is not None and step.index == self.next_index
        self.next_index += 1
        kept = bounded(step)
        size, last = _size(kept), next(reversed(self._sizes), None)
        try:
            if last is not None and self._steps < CHUNK_STEPS and self._sizes[last] + size <= CHUNK_BYTES:
                await self._add(last, kept)
                self._sizes[last] += size
                self._steps += 1
            else:
                await self._begin(kept, size)
        except CoreError as error:
            log.warning("session %s: step %d is not on record: %s", self._session_id, step.index, error)

    async def _add(self, name: str, step: Step) -> None:
        told = msgspec.to_builtins(step)

        def add(body: dict[str, Any]) -> dict[str, Any]:
            body["steps"].append(told)
            return body

        await self._core.records.update(self._caller, KIND, self._session_id, name, add)

    async def _begin(self, step: Step, size: int) -> None:
        """Another chunk; the oldest are forgotten if there are too many."""
        assert self._sizes is not None
        name = f"{step.index:010d}"
        body = msgspec.to_builtins(_Chunk([step]))
        await self._core.records.create(self._caller, KIND, self._session_id, name, body, ttl=KEPT_SECONDS)
        self._sizes[name] = size
        self._steps = 1
        while len(self._sizes) > 2:
            oldest, second, *_ = self._sizes
            if int(second) > self.next_index - MOST_STEPS and sum(self._sizes.values()) <= MOST_BYTES:
                return
            del self._sizes[oldest]
            await self._remove(oldest)

    async def _remove(self, name: str) -> None:
        with suppress(NotFound):  # it has expired
            await self._core.records.delete(self._caller, KIND, self._session_id, name)

    async def cut(self, last: int) -> None:
        """Forget what came after a step, which becomes the last one."""
        assert self._sizes is not None
        for name in [name for name in self._sizes if int(name) > last]:
            del self._sizes[name]
            await self._remove(name)

        def shorten(body: dict[str, Any]) -> dict[str, Any]:
            body["steps"] = [step for step in body["steps"] if step["index"] <= last]
            return body

        if self._sizes:
            newest = next(reversed(self._sizes))
            record = await self._core.records.update(self._caller, KIND, self._session_id, newest, shorten)
            steps = steps_of(record)
            self._steps, self._sizes[newest] = len(steps), sum(map(_size, steps))
        self.next_index = last + 1

    async def keep_for(self, seconds: float) -> None:
        """The session has ended: it is remembered so long."""
        for record in await self._records():
            with suppress(CoreError):
                await self._core.records.update(
                    self._caller, KIND, self._session_id, record.name, lambda body: body, ttl=seconds
                )

    async def forget(self) -> None:
        for record in await self._records():
            await self._remove(record.name)


def bounded(step: Step) -> Step:
    """As much of it as is kept."""
    out, err = _cut(step.stdout), _cut(step.stderr)
    changes: dict[str, Any] = {}
    if (out, err) != (step.stdout, step.stderr):
        total = step.bytes or len(step.stdout.encode()) + len(step.stderr.encode())
        changes = {"stdout": out, "stderr": err, "bytes": total, "truncated": True}
    if len(msgspec.json.encode(step.input)) > INPUT_BYTES:
        changes |= {"input": {"name": step.name}, "repeatable": False}
    return msgspec.structs.replace(step, **changes) if changes else step


def _cut(text: str) -> str:
    if len(text) <= HISTORY_BYTES // 4:
        return text
    return text.encode()[:HISTORY_BYTES].decode(errors="ignore")


def _size(step: Step) -> int:
    return len(step.stdout) + len(step.stderr) + len(step.content or "") + 512
