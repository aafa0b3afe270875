"""Rules of time: when a VM is deleted or suspended by itself. They say nothing to connections, names and requests, so
no network is told of them.

A clock is a moment (`at`), or runs from when the VM was made (`after_created`; `after` of the deprecated form) or from
when it last began to run (`after_last_running_start`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from boxwood.engine.policies import reading
from boxwood.engine.policies.reading import Malformed, members

MOST_SECONDS = 30 * 86400
TYPES = ("schedule", "lifecycle")
Clock = Literal["at", "after_created", "after_last_running_start"]
Deed = Literal["delete", "suspend"]
_CLOCKS: dict[str, Clock] = {name: name for name in ("at", "after_created", "after_last_running_start")}
_WHEN: dict[str, Clock] = {"at": "at", "after": "after_created"}  # of the deprecated form
_OF_TRAFFIC = ("priority", "match", "auth", "expires_at")


@dataclass(frozen=True, slots=True)
class TimedRule:
    """`at`: of the clock of this name; `seconds`: of the others."""

    ident: str
    type: Literal["schedule", "lifecycle"]
    clock: Clock
    deed: Deed
    at: datetime | None = None
    seconds: int = 0

    @property
    def secrets(self) -> frozenset[str]:
        return frozenset()

    def to_json(self) -> dict[str, Any]:
        value = self.seconds if self.at is None else shown_moment(self.at)
        if self.type == "lifecycle":
            return {
                "type": "lifecycle",
                "when": {"after" if self.at is None else "at": value},
                "action": self.deed,
            }
        return {"type": "schedule", self.clock: value, "action": self.deed}


def parse(at: str, name: str, value: Mapping[str, Any], now: datetime | None = None) -> TimedRule:
    """Of one of `TYPES`. `now`: a VM that is deleted at a moment is so later; None: whenever that was. Malformed."""
    kind: Literal["schedule", "lifecycle"] = value["type"]
    for member in _OF_TRAFFIC:
        if value.get(member) is not None:
            told = f"a {kind} rule has none: it has no effect on traffic, and no place among the rules that have"
            raise Malformed(f"{at}.{member}", told)
    known = ("type", "action", *(_CLOCKS if kind == "schedule" else ("when",)))
    said = members(at, value, known)
    if "action" not in said:
        raise Malformed(f"{at}.action", "must be there")
    deeds = ("delete", "suspend") if kind == "schedule" else ("delete",)
    deed: Deed = reading.word(f"{at}.action", said["action"], deeds)  # type: ignore[assignment]
    if kind == "schedule":
        place, clocks, given = at, _CLOCKS, said
    elif "when" in said:
        place, clocks = f"{at}.when", _WHEN
        given = members(place, said["when"], _WHEN)
    else:
        raise Malformed(f"{at}.when", 'must be there: {"at": TIME} or {"after": SECONDS}')
    word = _one_of(place, given, clocks)
    if clocks[word] == "at":
        there = moment(f"{place}.{word}", given[word])
        if deed == "delete" and now is not None and there <= now:
            raise Malformed(f"{place}.{word}", "must be in the future: to delete the VM now, delete it")
        return TimedRule(name, kind, "at", deed, there)
    seconds = reading.number(f"{place}.{word}", given[word], 1, MOST_SECONDS)
    return TimedRule(name, kind, clocks[word], deed, seconds=seconds)


def _one_of(at: str, said: Collection[str], clocks: Collection[str]) -> str:
    found = [name for name in clocks if name in said]
    if len(found) != 1:
        *most, last = clocks
        told = f"exactly one of {', '.join(most)} and {last} says when"
        raise Malformed(at, f"{told}, not {' and '.join(found) if found else 'none'}")
    return found[0]


def moment(at: str, value: Any) -> datetime:
    said = reading.text(at, value, 64)
    try:
        found = datetime.fromisoformat(said)
        if found.tzinfo is not None:
            found = found.astimezone(UTC)
    except (ValueError, OverflowError):
        found = None
    if found is None or found.tzinfo is None or "T" not in said.upper():
        raise Malformed(at, f"must be a time such as 2030-01-31T12:00:00Z, with its zone, not {reading.shown(said)}")
    return found


def shown_moment(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
