"""`boxwood run`: one command in a VM, its output byte for byte as it comes, its exit code ours."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from boxwood.cli.options import Json, connect
from boxwood.cli.output import note, say, say_json, write_bytes
from boxwood.cli.source import Source

if TYPE_CHECKING:
    from boxwood import Run, RunExited
    from boxwood.client.events import RunEvent

FACTS = ("run_id", "session_id", "state", "exit_code", "fail_reason", "duration_ms", "truncated", "stdout", "stderr")
VERBS = {"failed": "failed", "cancelled": "was cancelled"}
STDIN_LIMIT = 3_000_000  # bytes at once; a request to run something holds 4 MiB, and base64 makes 4 of 3


def run(
    vm: Annotated[str, typer.Argument(metavar="VM", help="By id or name.")],
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="One word: text for the shell. More: arguments, quoted.")
    ],
    timeout: Annotated[float | None, typer.Option(min=0, metavar="SECONDS", help="Kill it after that.")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", metavar="K=V", help="For this run.")] = None,
    cwd: Annotated[str | None, typer.Option(metavar="DIR", help="Directory, for this run.")] = None,
    user: Annotated[str | None, typer.Option(help="User, for this run.")] = None,
    session: Annotated[str | None, typer.Option(help="A session's id, or a number; default 0.")] = None,
    background: Annotated[bool, typer.Option("--background", help="Return at once; prints the run's id.")] = False,
    stdin: Annotated[
        bool | None, typer.Option("--stdin/--no-stdin", help="Hand on standard input. Default: if it is no terminal.")
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", "-i", help="Hand on standard input as it comes, also from a terminal.")
    ] = False,
    json: Json = False,
) -> int:
    """Run a command in a VM.

    `boxwood run VM 'cd /tmp; ls'` is text for the shell, `boxwood run VM -- ls -l '/a b'` arguments. Without --env,
    --cwd and --user it runs in the VM's shell, which keeps its directory, environment and variables.
    """
    if interactive and (background or json):
        raise typer.BadParameter("--interactive goes neither with --background nor with --json")
    source = Source()
    data, more = None, interactive
    if not interactive and (stdin if stdin is not None else not source.is_terminal):
        data, more = source.beginning(STDIN_LIMIT)
    if more and (background or json):
        raise typer.BadParameter(
            f"standard input is more than {STDIN_LIMIT} bytes: `boxwood cp - VM:/tmp/input` and read it from there"
        )
    wanted: _Wanted = {
        "timeout": timeout,
        "env": _pairs(env) if env else None,
        "cwd": cwd,
        "user": user,
        "session": int(session) if session is not None and _is_index(session) else session,
        "stdin": data,
    }
    what = command[0] if len(command) == 1 else command
    with connect() as box:
        try:
            if more:
                begun = box.vm(vm).run(what, background=True, stdin_open=True, **wanted)
                source.hand_on(begun)
                ended = _tell(begun.events())
                source.end()
                return exit_code(ended)
            if not json and not background:
                return exit_code(_tell(box.vm(vm).run_stream(what, **wanted)))
            done = box.vm(vm).run(what, background=background, **wanted)
        except KeyboardInterrupt:
            note("boxwood: no longer waiting; what was started goes on in the VM")
            raise
    if json:
        say_json(facts(done))
        return exit_code(done, quiet=True)
    say(done.run_id)
    return exit_code(done)


class _Wanted(TypedDict):
    timeout: float | None
    env: dict[str, str] | None
    cwd: str | None
    user: str | None
    session: int | str | None
    stdin: bytes | None


def _tell(events: Iterable[RunEvent]) -> RunExited:
    """Hand on what comes, as it comes."""
    from boxwood import RunExited, RunOutput, RunStarted

    for event in events:
        if isinstance(event, RunOutput):
            write_bytes(event.data, error=event.stream == "stderr")
        elif isinstance(event, RunExited):
            return event
        elif isinstance(event, RunStarted) and event.retry_count:
            note("boxwood: the host had stopped: the run has been begun again, and so does its output")
    raise AssertionError("the SDK's events end with the run")


def exit_code(done: Run | RunExited, quiet: bool = False) -> int:
    if done.truncated and not quiet:
        note(f"boxwood: {done.truncated} bytes of output were not kept")
    if done.state in ("failed", "cancelled") and not quiet:
        note(f"boxwood: the run {VERBS[done.state]}" + (f": {done.fail_reason}" if done.fail_reason else ""))
    if done.exit_code is not None:
        return done.exit_code & 0xFF
    return 1 if done.state in ("failed", "cancelled") else 0


def facts(done: Run) -> dict[str, object]:
    """What `--json` tells of a run."""
    return {name: getattr(done, name) for name in FACTS}


def _pairs(given: list[str]) -> dict[str, str]:
    for pair in given:
        if "=" not in pair or pair.startswith("="):
            raise typer.BadParameter(f"--env takes NAME=VALUE, not {pair!r}")
    return dict(pair.split("=", 1) for pair in given)


def _is_index(session: str) -> bool:
    return session.isascii() and session.isdigit() and len(session) < 11
