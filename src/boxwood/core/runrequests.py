"""What may be asked of a run, before anything of it is done."""

from __future__ import annotations

from boxwood.core import words
from boxwood.core.errors import PayloadTooLarge
from boxwood.core.model import RunRequest

COMMAND_BYTES = 4 << 20
ARGUMENT_BYTES = 9  # that each costs in the kernel, beside its own
STDIN_BYTES = 8 << 20
MARKER_BYTES = 256


def check(request: RunRequest) -> None:
    """BadRequest, PayloadTooLarge."""
    size = len(words.text("command", request.command))
    if request.argv is not None:
        if not request.argv or request.command or not request.beside:
            raise words.refuse("argv", "a program at least, instead of a command, beside all sessions")
    elif request.leaves:
        raise words.refuse("leaves", "only with argv")
    if request.argv is not None:
        size = sum(len(words.text("argv", argument)) + ARGUMENT_BYTES for argument in request.argv)
    if size > COMMAND_BYTES:
        raise PayloadTooLarge(f"the command has {size} bytes; at most {COMMAND_BYTES} are taken", COMMAND_BYTES, size)
    if request.stdin is not None and len(request.stdin) > STDIN_BYTES:
        raise PayloadTooLarge(
            f"stdin has {len(request.stdin)} bytes; at most {STDIN_BYTES} are taken", STDIN_BYTES, len(request.stdin)
        )
    words.seconds("timeout", request.timeout)
    words.seconds("wait", request.wait)
    words.seconds("queueing_timeout", request.queueing_timeout)
    words.environment(request.env)
    words.user(request.user)
    if request.cwd is not None:
        words.path(request.cwd, "cwd")
    if len(words.text("end_symbol", request.marker)) > MARKER_BYTES:
        raise words.refuse("end_symbol", f"at most {MARKER_BYTES} bytes")
    if request.prompt not in ("auto", "none"):
        raise words.refuse("end_symbol", "auto or none")
    if request.session_index is not None:
        words.session_index(request.session_index)


def check_python(request: RunRequest) -> None:
    """What a run in a Python context cannot be given, and where that is said instead. BadRequest."""
    for field, given, instead in (
        ("env", request.env, "os.environ, or the env of the session"),
        ("cwd", request.cwd, "os.chdir, or the cwd of the session"),
        ("user", request.user, "a run in a shell"),
    ):
        if given is not None:
            raise words.refuse(field, f"not in a Python context: use {instead}")
    if request.marker:
        raise words.refuse("end_symbol", "not in a Python context, whose runs end when their code does")
