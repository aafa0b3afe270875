"""Results: the table, the aims, and the parts of README.md and docs/benchmarks.md that come from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import Series

HOME = Path(__file__).parents[1]
SINGLE = "One client, over HTTP, beside bubblewrap and runc"
DOCKER = "Beside Docker"
CLIENTS = "Through other people's published clients, beside Docker's API"
POOLS = "Warm pools"
NETWORK = "The network of a box"
ROOTLESS = "With root and without"
ISOLATION = "What each layer of isolation costs when a box is made"
ISOLATED = "What runs behind the layers"
MANY = "32 clients at once"
RATES = "Runs per second, beside Docker's exec at the same concurrency"
STREAMS = "Runs followed as they happen"
TERMINALS = "Terminals"
PYTHON = "Python contexts"
FILES = "Files in and out"
INBOUND = "Ports of VMs"
POLICY = "Requests under network policies"
GROWTH = "How a fork grows"
MEMORY = "Memory and disk"
FLOOR = "Without HTTP"
PARKED = "processes of 200 parked VMs"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
PART_BEGIN, PART_END = "<!-- bench-part:begin -->", "<!-- bench-part:end -->"  # measured apart, and later


@dataclass(frozen=True, slots=True)
class Aim:
    """`value` must not lie above `bar` (or below it, if `at_least`)."""

    text: str
    value: float
    bar: float
    unit: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "met   " if self.met else "MISSED"
        return f"{verdict}  {self.text}: {self.value:.2f}{self.unit} (aim {sign} {self.bar:g}{self.unit})"


@dataclass(slots=True)
class Report:
    machine: dict[str, str]
    when: str
    sections: dict[str, list[Series]] = field(default_factory=dict)
    aims: list[Aim] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def add(self, section: str, series: Iterable[Series]) -> None:
        self.sections.setdefault(section, []).extend(series)

    def find(self, section: str, name: str) -> Series | None:
        found = (series for series in self.sections.get(section, ()) if series.name == name and series.values)
        return next(found, None)

    def ratio(self, text: str, over: Series | None, under: Series | None, bar: float, at_least: bool = False) -> None:
        """An aim on the medians of two series; without one of them there is a remark instead."""
        if over is None or under is None:
            self.remarks.append(f"not judged: {text}")
            return
        self.aims.append(Aim(text, over.p50 / under.p50, bar, " ×", at_least))

    @property
    def met(self) -> bool:
        return all(aim.met for aim in self.aims)

    def as_json(self) -> dict[str, Any]:
        return {
            "when": self.when,
            "machine": self.machine,
            "results": {name: [one.as_json() for one in series] for name, series in self.sections.items()},
            "aims": [
                {
                    "aim": aim.text,
                    "value": round(aim.value, 4),
                    "bar": aim.bar,
                    "at_least": aim.at_least,
                    "met": aim.met,
                }
                for aim in self.aims
            ],
            "remarks": self.remarks,
        }


def full(report: Report) -> str:
    """Everything, as Markdown."""
    lines = [_machine(report), ""]
    for section, series in report.sections.items():
        lines += [f"**{section}**", "", "| | p50 | p90 | p99 | n |", "|---|---:|---:|---:|---:|"]
        lines += [_row(one) for one in series]
        lines.append("")
    lines += ["**Aims**", "", "| | measured | aim | |", "|---|---:|---:|---|"]
    for aim in report.aims:
        sign, verdict = "≥" if aim.at_least else "≤", "met" if aim.met else "**missed**"
        lines.append(f"| {aim.text} | {aim.value:.2f}{aim.unit} | {sign} {aim.bar:g}{aim.unit} | {verdict} |")
    lines += ["", *(f"* {remark}" for remark in report.remarks)]
    return "\n".join(lines).rstrip()


def brief(report: Report) -> str:
    """What the README shows: ours beside the peers."""
    rows = [
        ("**Boxwood**: fork a VM", "one", "fork"),
        ("**Boxwood**: fork a VM and run a first command", "one", "fork + first command"),
        ("bubblewrap: start and `true`", "one", "bwrap: start + true"),
        ("runc: start and `true`", "one", "runc: run true"),
        ("Docker: create a container and exec a first command", "docker", "Docker: create + first exec"),
        ("**Boxwood**: run a shell builtin in a VM", "one", "run of a builtin"),
        ("**Boxwood**: run `/bin/true` in a VM", "one", "run of /bin/true"),
        ("**Boxwood**: run a program in a VM without a shell", "docker", "exec of /bin/true"),
        ("Docker: exec in a running container", "docker", "Docker: exec"),
        ("**Boxwood**: claim a VM from a warm pool", "pools", "claim from a pool"),
        ("the floor: `posix_spawn` of `/bin/true` on the host", "one", "posix_spawn: /bin/true"),
    ]
    titles = {"one": SINGLE, "docker": DOCKER, "pools": POOLS}
    lines = ["| | p50 | p99 |", "|---|---:|---:|"]
    for text, section, name in rows:
        if (series := report.find(titles[section], name)) is not None:
            lines.append(f"| {text} | {_number(series.p50)} ms | {_number(series.percentile(0.99))} ms |")
    memory = next((one for one in report.sections.get(MEMORY, []) if one.unit == "MiB"), None)
    if memory is not None:
        lines.append(f"| memory of a live VM with an idle shell | {_number(memory.p50)} MiB | |")
        lines.append(
            "| processes of a parked VM | 0 | |" if _none_parked(report) else "| processes of a parked VM | some | |"
        )
    return "\n".join([*lines, "", _machine(report)])


def insert(path: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Replace what stands between the markers."""
    before, found, rest = path.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise SystemExit(f"bench: {path} has no {begin} … {end}")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def terminal(report: Report) -> str:
    """The tables for a terminal, in columns."""
    lines = []
    for section, series in report.sections.items():
        lines.append(f"\n{section}")
        width = max(len(one.name) for one in series)
        for one in series:
            shares = (f"{_number(one.percentile(share)):>9}" for share in (0.5, 0.9, 0.99))
            lines.append(f"  {one.name:<{width}} {''.join(shares)} {one.unit:<6} n={len(one.values)} {one.note}")
    lines += ["", *map(str, report.aims), *(f"remark: {remark}" for remark in report.remarks)]
    return "\n".join(lines)


def _row(one: Series) -> str:
    shares = " | ".join(f"{_number(one.percentile(share))} {one.unit}" for share in (0.5, 0.9, 0.99))
    note = f" ({one.note})" if one.note else ""
    return f"| {one.name}{note} | {shares} | {len(one.values)} |"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _machine(report: Report) -> str:
    parts = (f"{name} {text}" for name, text in report.machine.items())
    return f"Measured {report.when} on: {', '.join(parts)}."


def _none_parked(report: Report) -> bool:
    return any(aim.met and aim.text == PARKED for aim in report.aims)
