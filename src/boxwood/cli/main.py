"""`boxwood`: the commands, and what becomes of errors.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted; `run`, `shell` and `python` exit as what they ran did.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

import boxwood
from boxwood.cli import (
    copy,
    exports,
    fs,
    image,
    key,
    kubeconfig,
    network,
    policy,
    pool,
    ports,
    python,
    run,
    server,
    shell,
    snapshots,
    storage,
    vms,
    volume,
)
from boxwood.cli.output import abandon_output, report, say
from boxwood.client.errors import BoxwoodError

app = typer.Typer(
    name="boxwood",
    help="Computers for programs: fork one in milliseconds, run commands in it, fork it again, throw it away.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage; run, shell and python exit as what they ran did.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes longer to load than most commands take to run
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"boxwood {boxwood.__version__}")
        raise typer.Exit


@app.callback()
def _globals(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


app.command("up")(server.up)
app.command("down")(server.down)
app.command("doctor")(server.doctor)
app.command("fork")(vms.fork)
app.command("run")(run.run)
app.command("shell")(shell.shell)
app.command("python")(python.python)
app.command("ls")(vms.ls)
app.command("rm")(vms.rm)
app.command("prune")(vms.prune)
app.command("cp")(copy.cp)
app.command("mount")(volume.mount)
app.command("unmount")(volume.unmount)
app.command("snapshot")(snapshots.snapshot)
app.command("snapshots")(snapshots.snapshots)
app.command("restore")(snapshots.restore)
app.command("diff")(snapshots.diff)
app.command("commit")(snapshots.commit)
app.command("export")(exports.export)
app.command("import")(exports.import_vm)
app.command("sync")(copy.sync)
app.command("net")(network.net)
app.command("forward")(ports.forward)
app.command("url")(ports.url)
app.command("kubeconfig")(kubeconfig.kubeconfig)
app.add_typer(fs.app, name="fs")
app.add_typer(image.app, name="image")
app.add_typer(key.app, name="key")
app.add_typer(policy.app, name="policy")
app.add_typer(pool.app, name="pool")
app.add_typer(policy.secrets, name="secret")
app.add_typer(storage.app, name="storage")
app.add_typer(volume.app, name="volume")


def execute(args: Sequence[str]) -> int:
    """Carries out a command line. Returns the exit code; every error has been reported."""
    words = list(args)
    as_json = "--json" in words[: words.index("--") if "--" in words else None]
    try:
        code = app(args=words, prog_name="boxwood", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except typer.TyperException as error:
        if as_json:
            report(error.format_message() if hasattr(error, "format_message") else str(error), True, code="usage")
        elif hasattr(error, "show"):
            error.show()
        return int(getattr(error, "exit_code", 2))
    except BoxwoodError as error:
        seen = {"code": error.code, "status": error.status, "request_id": error.request_id}
        report(error.message, as_json, **seen, details=error.details or None)
    except BrokenPipeError:
        abandon_output()
    except OSError as error:
        what = error.strerror or str(error)
        report(f"{error.filename}: {what}" if error.filename else what, as_json, code="os_error")
    except (KeyboardInterrupt, typer.Abort):
        report("interrupted", as_json, code="interrupted")
        return 130
    return 1


def main() -> NoReturn:
    sys.exit(execute(sys.argv[1:]))
