"""What a shell says of itself, all of which the session can forge, and what is made of it.

The first byte chooses the shell, the second how large the pieces are in which the rest comes.
"""

from __future__ import annotations

from boxwood.engine.agent.dialects import KINDS, Dialect, saved_state
from boxwood.engine.agent.state import Report, State
from fuzz.target import lines

_KINDS = (KINDS[b"bash"], KINDS[b"sh"])
_PLACE = b"0022\n/tmp\n"
_BASH = (
    b'declare -x A="b\\$c"\ndeclare -a L=([0]="x" [1]=$\'\\n\')\ndeclare -ir N="3"\n', b"f () \n{ \n    :\n}\n",
    b"declare -f f\n", b"alias ll='ls -l'\n", b"/tmp\n/\n",
)  # fmt: skip
_TRAPS = b"trap -- 'echo '\\''x'\\' INT\n"


def _report(kind: Dialect, row: tuple[bytes, ...], arguments: tuple[bytes, ...] = ()) -> bytes:
    fields = (b"R0.hB", _TRAPS, *row[: len(kind.row)], *[b""] * (len(kind.row) - len(row)), _PLACE)
    return b"\0".join((*fields, b"%d" % len(arguments), *arguments, b"E", b""))


SEEDS = (
    b"\0\xff" + _report(_KINDS[0], _BASH),
    b"\0\x07" + _report(_KINDS[0], _BASH, (b"one", b"two words")),
    b"\1\xff" + _report(_KINDS[1], (b"A='b'\nB='it'\\''s'\n", b"export A='b'\n", b"set -o errexit\n", b"x='y'\n")),
    b"\1\x01X\0",
)
WORDS = lines(
    "\0", "R0\0", "R255.e\0", "X\0", "E\0", "\0" + "0\0E\0", "\n", "declare -", "declare -f ", "declare -x ", "declare -A ",
    "SHELLOPTS=", "BASHOPTS=", "='", "'\\''", '="', "=$'", "\\x41", "\\377", "\\", "trap -- ", " EXIT\n", "alias ", "alias -- ",
    "set -o ", "export ", "readonly ", " () \n", "function ", "declare -n r=", "999999999\0", "1000000000\0", "([0]=",
)  # fmt: skip


def check(data: bytes) -> None:
    kind = _KINDS[data[0] % 2] if data else _KINDS[0]
    size = max(data[1], 1) if len(data) > 1 else 1
    text = data[2:]
    report, rest = _fed(kind, text, size)
    whole, rest_of_whole = _fed(kind, text, len(text) or 1)
    assert (report.code, report.flags, report.at_exit, report.complete, report.garbled, rest) == (
        whole.code, whole.flags, whole.at_exit, whole.complete, whole.garbled, rest_of_whole,
    )  # fmt: skip
    if not report.complete:
        return
    assert report.code is None or 0 <= report.code <= 255
    assert report.sections() == whole.sections()
    sections, arguments = report.sections()
    sections = kind.arm(sections, b"/run/d")
    state = State(kind.kind, sections, arguments, code=report.code or 0)
    assert saved_state(state.pack()) == state, "what is accepted is kept as it is"
    use(kind, state)


def _fed(kind: Dialect, text: bytes, size: int) -> tuple[Report, bytes]:
    """The report and what lies behind it."""
    report = Report(kind.row)
    for at in range(0, len(text), size):
        rest = report.feed(text[at : at + size])
        if report.complete or report.garbled:
            return report, rest + text[at + size :]
    return report, b""


def use(kind: Dialect, state: State) -> None:
    """All that is done with a state: nothing in it may stop the agent."""
    base = State(kind.kind, dict.fromkeys(state.sections, b""), [])
    for one, other in ((state, base), (base, state), (state, state)):
        for text in kind.restore(one, other, lambda note: None):
            assert isinstance(text, bytes) and b"\0" not in text
    exported = kind.exported(state.sections)
    assert all(name and b"=" not in name and b"\0" not in name + value for name, value in exported.items())
    assert kind.visible(state.sections) == kind.visible(dict(state.sections))
    assert kind.fingerprint(state) == kind.fingerprint(State.unpack(state.pack()))
    kind.flags(state.sections)
