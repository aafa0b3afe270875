"""A shell's saved state as it comes back: from a box, by way of the server, to the next agent."""

from __future__ import annotations

from boxwood.engine.agent.dialects import KINDS, saved_state
from boxwood.engine.agent.state import State
from fuzz import report
from fuzz.target import lines


def _saved(kind: bytes, sections: dict[bytes, bytes], *arguments: bytes, **functions: bytes) -> bytes:
    names = (b"traps", *KINDS[kind].row, b"umask", b"cwd", b"armed")
    texts = {name.encode(): text for name, text in functions.items()}
    return State(kind, {name: sections.get(name, b"") for name in names}, list(arguments), texts, 3).pack()


_BASH = {
    b"vars": b'declare -x A="b"\n',
    b"fattrs": b"declare -fx f\n",
    b"funcs": b"f () \n{ \n    :\n}\n",
    b"cwd": b"/tmp",
}
SEEDS = (
    _saved(b"bash", _BASH),
    _saved(b"bash", {**_BASH, b"umask": b"0022", b"armed": b"1", b"traps": b"trap -- 'x' INT\n"}, b"one", b"two"),
    _saved(b"sh", {b"vars": b"A='b'\n", b"exports": b"export A='b'\n", b"umask": b"0022"}, f=b"f() { :; }"),
)
WORDS = (
    *lines("\0", "boxwood shell 1\0", "bash\0", "sh\0", "-1\0", "255\0", "256\0", "1_0\0", "+1\0", "vars\0", "cwd\0", "armed\0", "9" * 20 + "\0"),
    *report.WORDS,
)  # fmt: skip


def check(data: bytes) -> None:
    try:
        state = saved_state(data)
    except ValueError:
        return
    assert saved_state(state.pack()) == state
    report.use(KINDS[state.kind], state)
