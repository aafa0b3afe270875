"""What layers in memory show, compared, packed and united, for the engine in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from boxwood.engine.states import BadArchive, Change, Committed, Difference, Sealed
from fakebox import Tree


class FakeStates:
    """A tree has files alone."""

    def __init__(self, machine: Any) -> None:
        self.machine = machine

    def _view(self, stack: Sealed) -> dict[str, bytes]:
        for place, layer_id in stack:
            assert layer_id in (self.machine.images if place == "image" else self.machine.layers)
        return self.machine.view([layer_id for _, layer_id in stack])

    async def pack(self, layers: Sealed, *, whole: bool) -> AsyncGenerator[bytes, None]:
        """A line of JSON is what fakes have for a tree."""
        self.machine.note("pack", (layers, whole))
        tree: Tree = {}
        for place, layer_id in reversed(layers):
            tree |= (self.machine.images if place == "image" else self.machine.layers)[layer_id]
        text = {path: None if data is None else data.hex() for path, data in tree.items()}
        said = json.dumps(text).encode() + b"\n"
        for at in range(0, len(said), 1000):
            if self.machine.merge_gate is not None:
                await self.machine.merge_gate.wait()
            yield said[at : at + 1000]

    async def unpack(self, pieces: AsyncIterator[bytes], target: str, *, whole: bool, most: int, hide: str = "") -> int:
        self.machine.note("unpack", (target, whole, most, hide))
        self.machine.layers[target] = {}  # half of it
        said = b"".join([piece async for piece in pieces])
        if len(said) > most:
            raise BadArchive("too much")
        try:
            tree = {path: None if data is None else bytes.fromhex(data) for path, data in json.loads(said).items()}
        except ValueError:
            raise BadArchive("no tree") from None
        self.machine.layers[target] = dict.fromkeys(self.machine.images[hide]) | tree if hide else tree
        return len(said)

    async def commit(self, base: Sealed, theirs: Sealed, ours: Sealed, target: str) -> Committed:
        self.machine.note("commit", (base, theirs, ours, target))
        if self.machine.merge_gate is not None:
            await self.machine.merge_gate.wait()
        old, a, b = self._view(base), self._view(theirs), self._view(ours)
        changed = {path for path in old.keys() | b.keys() if old.get(path) != b.get(path)}
        wrong = [path for path in sorted(changed) if a.get(path) not in (old.get(path), b.get(path))]
        if not wrong:
            self.machine.layers[target] = {path: b.get(path) for path in changed}
        return Committed(tuple(wrong), len(changed))

    async def diff(self, old: Sealed, new: Sealed, *, most: int, text: bool = False, below: str = "") -> Difference:
        self.machine.note("diff", (old, new))
        if self.machine.merge_gate is not None:
            await self.machine.merge_gate.wait()
        a, b = self._view(old), self._view(new)
        changes = [
            Change(
                path, "file" if path in b else None, "file" if path in a else None,
                ("content",) if path in a and path in b else (), len(b[path]) if path in b else None,
                len(a[path]) if path in a else None, 0o644 if path in b else None,
                f"{a.get(path)!r} {b.get(path)!r}" if text else None,
            )
            for path in sorted(a.keys() | b.keys())
            if a.get(path) != b.get(path) and path.startswith(f"/{below}" + "/" * bool(below))
        ]  # fmt: skip
        return Difference(tuple(changes[:most]), len(changes) > most)
