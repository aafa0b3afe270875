"""Timing: series of samples, and rounds in which several things are measured in turn, so that noise hits all alike."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Clock = Callable[[], float]


@dataclass(slots=True)
class Series:
    """Samples of one thing. `unit`: ms, MiB, KiB, runs/s, …"""

    name: str
    unit: str = "ms"
    values: list[float] = field(default_factory=list)
    note: str = ""

    def add(self, value: float) -> None:
        self.values.append(value)

    def percentile(self, share: float) -> float:
        """Nearest rank; of one sample, that sample."""
        ordered = sorted(self.values)
        return ordered[min(len(ordered) - 1, max(0, round(share * (len(ordered) - 1))))]

    @property
    def p50(self) -> float:
        return self.percentile(0.5)

    def as_json(self) -> dict[str, Any]:
        shares = {f"p{round(share * 100)}": round(self.percentile(share), 4) for share in (0.5, 0.9, 0.99)}
        return {"name": self.name, "unit": self.unit, "n": len(self.values), **shares, "note": self.note}


def timed(step: Callable[[], object]) -> float:
    """Milliseconds that `step` takes."""
    began = time.perf_counter()
    step()
    return (time.perf_counter() - began) * 1e3


PAUSE = 0.25  # seconds before each burst, in which what the one before left to the background comes to its end


def rounds(n: int, steps: Mapping[str, Callable[[], float]], burst: int = 5) -> dict[str, Series]:
    """In each of `n` rounds every step in turn: once to warm up, then `burst` times that count.

    A step returns its own milliseconds.
    """
    found = {name: Series(name) for name in steps}
    gc.collect()
    for _ in range(n):
        for name, step in steps.items():
            time.sleep(PAUSE)
            step()
            for _ in range(burst):
                found[name].add(step())
    return found


def dump(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
