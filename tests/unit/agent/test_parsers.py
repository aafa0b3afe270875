"""Reports that a session has forged to keep its agent busy. What took as long as its square took hours: there are no
other bounds here than that each test comes to an end."""

from __future__ import annotations

import pytest

from boxwood.engine.agent.dialects import KINDS
from boxwood.engine.agent.state import STATE_LIMIT, Report, State

BASH, SH = KINDS[b"bash"], KINDS[b"sh"]


def state(kind, **sections):
    names = (b"traps", *kind.row, b"umask", b"cwd", b"armed")
    return State(kind.kind, {name: sections.get(name.decode(), b"") for name in names}, [])


@pytest.mark.parametrize("size", [1 << 9, 1 << 16])
def test_a_long_field_in_small_pieces(size):
    field = b"x" * (STATE_LIMIT - 4096)
    said = b"\0".join((b"R7", *[b""] * (len(BASH.row) + 1 - 1), field, b"0022\n/tmp\n", b"1", b"arg", b"E", b"rest"))
    report = Report(BASH.row)
    for at in range(0, len(said), size):
        rest = report.feed(said[at : at + size])
    assert report.complete and rest == b"rest" and (report.code, report.too_large) == (7, False)
    sections, arguments = report.sections()
    assert sections[BASH.row[-1]] == field and sections[b"cwd"] == b"/tmp" and arguments == [b"arg"]


def test_a_field_without_end_takes_no_memory():
    report = Report(BASH.row)
    for piece in (b"R0\0", *[b"x" * (1 << 16)] * 400):
        report.feed(piece)
    assert report.too_large and not report.complete
    assert sum(map(len, report._fields)) + sum(map(len, report._tail)) < 1 << 17


@pytest.mark.parametrize(
    ("kind", "sections"),
    [
        (BASH, {"vars": b"declare -x A='\\''\n" * 200_000}),
        (BASH, {"vars": b'declare -x A="' * 200_000}),
        (BASH, {"vars": b"declare -x A=$'" * 200_000}),
        (BASH, {"traps": b"trap -- '\\''\n" * 200_000}),
        (BASH, {"fattrs": b"".join(b"declare -f f%d\n" % n for n in range(50_000)), "funcs": b"x () \n" * 100_000}),
        (SH, {"vars": b"A='\\''\n" * 200_000}),
        (SH, {"exports": b"export A='" * 200_000}),
        (SH, {"aliases": b"a='\\''\n" * 200_000}),
    ],
)
def test_forged_dumps_are_read_once(kind, sections):
    forged, empty = state(kind, **sections), state(kind)
    kind.restore(forged, empty, lambda note: None)
    kind.exported(forged.sections)
    kind.visible(forged.sections)
    kind.arm(dict(forged.sections), b"/run/d")


def test_what_is_damaged_costs_only_itself():
    good, bad = b'declare -x A="1"\n', b'garbage = (\ndeclare -x\nmore"\n\n'
    forged = state(BASH, vars=bad + good + bad + b'declare -x B="two\n lines"\n')
    assert BASH.exported(forged.sections) == {b"A": b"1", b"B": b"two\n lines"}
    assert SH.exported(state(SH, exports=b"?=(\n\nexport A='1'\n)=\nexport B='2\n'\n").sections) == {
        b"A": b"1",
        b"B": b"2\n",
    }
