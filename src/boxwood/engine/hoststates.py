"""The states of VMs on this host: jobs of the zygote that have a second pipe. Implements engine/states.States."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any

from boxwood.engine import pipes
from boxwood.engine.api import EngineError
from boxwood.engine.states import BadArchive, Change, Committed, Difference, Sealed
from boxwood.engine.ulid import checked

_TOLD_BYTES = 64 << 20  # of all that a job may tell
_SECONDS = 900.0
_SILENCE = 120.0  # seconds in which nothing comes or goes
_KINDS = frozenset({"file", "directory", "symlink", "fifo", "socket", "device"})

Job = Callable[[dict[str, Any], int], Coroutine[Any, Any, dict[str, Any]]]  # takes the descriptor


class HostStates:
    """`job`: has a job done that is given the end of a pipe as well, which it closes."""

    def __init__(self, job: Job) -> None:
        self._job = job

    async def diff(self, old: Sealed, new: Sealed, *, most: int, text: bool = False, below: str = "") -> Difference:
        job = {"kind": "diff", "most": most, "text": text, "below": below, **_sides(old=old, new=new)}
        answer, said = await self._told(job)
        changes = await asyncio.to_thread(_changes, said, most)
        return Difference(changes, bool(answer.get("truncated")))

    async def commit(self, base: Sealed, theirs: Sealed, ours: Sealed, target: str) -> Committed:
        job = {"kind": "commit", "target": checked(target), **_sides(base=base, theirs=theirs, ours=ours)}
        answer, said = await self._told(job)
        try:
            collisions = tuple(str(json.loads(line)) for line in said.splitlines())
        except ValueError as error:
            raise EngineError(f"the commit answered what makes no sense: {error}") from None
        return Committed(collisions, int(answer.get("inodes", 0)))

    async def pack(self, layers: Sealed, *, whole: bool) -> AsyncGenerator[bytes, None]:
        job = {"kind": "pack", "layers": [[where, checked(ident)] for where, ident in layers], "whole": whole}
        ours, theirs = pipes.pipe()
        working = asyncio.create_task(self._job(job, theirs))
        try:
            async with aclosing(pipes.pieces(ours, _SILENCE)) as coming:
                async for piece in coming:
                    yield piece
            await working
        except TimeoutError:
            raise EngineError("the archive has stopped coming") from None
        finally:
            _leave(working)

    async def unpack(self, pieces: AsyncIterator[bytes], target: str, *, whole: bool, most: int, hide: str = "") -> int:
        job = {
            "kind": "unpack", "target": checked(target), "whole": whole, "most": most,
            "hide": checked(hide) if hide else "",
        }  # fmt: skip
        theirs, ours = pipes.pipe()
        os.set_blocking(ours, False)
        working = asyncio.create_task(self._job(job, theirs))
        try:
            try:
                with suppress(BrokenPipeError):  # it says why
                    async for piece in pieces:
                        await pipes.feed(ours, piece, _SILENCE)
            finally:
                os.close(ours)
                await asyncio.wait([working])  # also of what came to nothing: then nothing of it is left
            return int((await working)["bytes"])
        except TimeoutError:
            raise EngineError("the archive is not taken in any more") from None
        except EngineError as error:
            _, refused, why = str(error).partition("Refused: ")
            if refused:
                raise BadArchive(why) from None
            raise

    async def _told(self, job: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """A job's answer, and what came over the other pipe."""
        ours, theirs = os.pipe()
        os.set_blocking(ours, False)
        working = asyncio.create_task(self._job(job, theirs))
        try:
            said = await pipes.read_to_end(ours, _SECONDS, _TOLD_BYTES)
            return await working, said
        except TimeoutError:
            raise EngineError(f"the comparison took longer than {_SECONDS:g} s") from None
        finally:
            _leave(working)


def _sides(**sides: Sealed) -> dict[str, Any]:
    """All layers once, and which of them each side has."""
    layers = list(dict.fromkeys(layer for side in sides.values() for layer in side))
    place = {layer: number for number, layer in enumerate(layers)}
    told = {name: [place[layer] for layer in side] for name, side in sides.items()}
    return {"layers": [[where, checked(ident)] for where, ident in layers], **told}


def _leave(working: asyncio.Task[dict[str, Any]]) -> None:
    """Its pipe is closed: it ends by itself, and nobody asks how."""
    working.add_done_callback(lambda task: task.cancelled() or task.exception())


def _changes(said: bytes, most: int) -> tuple[Change, ...]:
    try:
        return tuple(_change(json.loads(line)) for line in said.splitlines()[:most])
    except (ValueError, TypeError, KeyError) as error:
        raise EngineError(f"the comparison answered what makes no sense: {error}") from None


def _change(said: dict[str, Any]) -> Change:
    return Change(
        path=str(said["path"]),
        kind=_kind(said.get("kind")),
        old_kind=_kind(said.get("old_kind")),
        what=tuple(str(one) for one in said["what"]),
        size=_number(said.get("size")),
        old_size=_number(said.get("old_size")),
        mode=_number(said.get("mode")),
        diff=None if said.get("diff") is None else str(said["diff"]),
    )


def _kind(value: Any) -> str | None:
    if value is not None and value not in _KINDS:
        raise ValueError(f"a kind of {value!r:.40}")
    return None if value is None else str(value)


def _number(value: Any) -> int | None:
    return None if value is None else int(value)
