"""What a target of fuzzing is, and what holds for all of them.

A target is a module with `check(data)`, which raises for a finding and for nothing else, `SEEDS`, inputs made of real
messages, and `WORDS`, pieces that such inputs are made of. What was found once lies in corpus/NAME/ as a file.
"""

from __future__ import annotations

import importlib
import os
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

NAMES = (
    "agent", "manifest", "report", "state", "context", "archive", "tarball", "layers", "unpacker", "question", "answer",
)  # fmt: skip
CORPUS = Path(__file__).parent / "corpus"
_EDGES = (0, 1, 0x7F, 0x80, 0xFF)


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    check: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...]

    def run(self, data: bytes) -> None:
        """One input. AssertionError or what the parser let through; also where it leaves descriptors open."""
        before = open_descriptors()
        self.check(data)
        after = open_descriptors()
        assert after <= before, f"descriptors are left open: {sorted(after - before)}"


def load(name: str) -> Target:
    module = importlib.import_module(f"fuzz.{name}")
    found = sorted((CORPUS / name).glob("*"))
    return Target(name, module.check, (*module.SEEDS, *(path.read_bytes() for path in found)), tuple(module.WORDS))


def open_descriptors() -> set[str]:
    for thread in threading.enumerate():
        if thread.name == "strays":
            thread.join()
    there = set(os.listdir("/proc/self/fd"))
    return {name for name in there if os.path.lexists(f"/proc/self/fd/{name}")}  # all but that of the listing itself


def mutated(target: Target, noise: random.Random) -> bytes:
    """A seed, changed in a few places: for where no fuzzer tells what a change was good for."""
    data = bytearray(noise.choice(target.seeds))
    for _ in range(noise.choice((1, 1, 2, 3, 8))):
        at, end = sorted((noise.randrange(len(data) + 1), noise.randrange(len(data) + 1)))
        match noise.randrange(7):
            case 0 if data:
                data[at % len(data)] = noise.choice((*_EDGES, noise.randrange(256)))
            case 1:
                data[at:at] = noise.choice(target.words)
            case 2:
                del data[at : min(end, at + noise.choice((1, 4, 64, 4096)))]
            case 3:
                data[at:at] = data[at : min(end, at + 512)] * noise.choice((1, 2, 20))
            case 4:
                other = noise.choice(target.seeds)
                data[at:] = other[noise.randrange(len(other) + 1) :]
            case 5:
                old, new = noise.choice(target.words), noise.choice(target.words)
                data = bytearray(bytes(data).replace(old, new, noise.choice((1, -1))))
            case _:
                data[at : at + 4] = _one_more(bytes(data[at : at + 4]), noise)
    return bytes(data[: 1 << 18])


def _one_more(number: bytes, noise: random.Random) -> bytes:
    value = int.from_bytes(number, "little") + noise.choice((-1, 1, 8, 512, 1 << 30))
    return (value % (1 << 8 * len(number))).to_bytes(len(number), "little")


def lines(*parts: str) -> tuple[bytes, ...]:
    """Seeds or words that are texts."""
    return tuple(part.encode() for part in parts)


def joined(parts: Sequence[bytes]) -> bytes:
    return b"\n".join(parts)
