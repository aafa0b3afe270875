"""What `make demo` shows: VMs fork, run, diverge and go, with the time that each step took.

Uses the server of this machine if one runs, else starts one on a temporary data directory and ends it afterwards.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from boxwood import VM, Boxwood, BoxwoodError, ConnectionFailed

T = TypeVar("T")
CHILDREN = 5
MANY = 100
screen = Console(highlight=False)


def main() -> int:
    screen.print("\n[bold]Boxwood[/bold]: computers for programs\n")
    try:
        with _server() as box, ExitStack() as made:
            vm = _first(box, made)
            _sessions(vm)
            _files(vm)
            _children(vm, made)
            _ruin(vm)
            _many(vm)
            screen.print("\nThat was it; all of them are deleted again.\n")
        return 0
    except BoxwoodError as error:
        screen.print(f"[red]{escape(str(error))}[/red]")
        return 1


def _first(box: Boxwood, made: ExitStack) -> VM:
    _title("A computer")
    vm = _timed('box.fork("ubuntu")', lambda: box.fork("ubuntu"))
    made.enter_context(vm)
    _run(vm, "uname -sm; id -un; hostname", "the first command boots it")
    _run(vm, "ls -d /proc/[0-9]* | wc -l; ls -A ~", "its own processes, and a home of its own")
    _run(vm, "python3 -c 'print(6 * 7)'")
    return vm


def _sessions(vm: VM) -> None:
    _title("A session is a shell")
    _run(vm, "cd /srv; export COLOUR=green; greet() { echo hello from $PWD; }")
    _run(vm, "greet; echo $COLOUR; exit 3", "exit ends the run, not the session")
    _run(vm, "greet")


def _files(vm: VM) -> None:
    _title("Files")
    program = "import sys, hashlib\nprint(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest()[:16])\n"
    _timed('vm.write_file("/srv/sum.py", …)', lambda: vm.write_file("/srv/sum.py", program))
    data = os.urandom(8 << 20)
    _timed("vm.write_file of 8 MiB", lambda: vm.write_file("/srv/data", data))
    _run(vm, "python3 sum.py data")
    back = _timed("vm.read_file of 8 MiB", lambda: vm.read_file("/srv/data"))
    screen.print(f"    the same bytes: {back == data}")


def _children(vm: VM, made: ExitStack) -> None:
    _title("Forks have it all, and go their own ways")
    table = Table("child", "fork", "first command", "what it says", box=None, pad_edge=False, header_style="dim")
    for number in range(CHILDREN):
        began = time.perf_counter()
        child = vm.fork()
        forked = time.perf_counter()
        made.enter_context(child)
        told = child.run(f"echo child {number} > mine; echo $COLOUR, $(ls | wc -l) files, $(cat mine)").stdout.strip()
        ran = time.perf_counter()
        table.add_row(str(number), _ms(forked - began), _ms(ran - forked), escape(told))
    screen.print(table)
    _run(vm, "ls", "the parent knows nothing of it")


def _ruin(vm: VM) -> None:
    _title("Throw one away")
    with vm.fork() as child:
        _run(child, "rm -rf /etc /home /srv /var; echo $(ls /)", "in a fork")
    _run(vm, "greet; ls", "in the parent")


def _many(vm: VM) -> None:
    _title(f"{MANY} more")
    began = time.perf_counter()
    children = [vm.fork() for _ in range(MANY)]
    took = time.perf_counter() - began
    screen.print(f"  {MANY} forks in [bold]{took * 1e3:.0f} ms[/bold], {_ms(took / MANY)} each")
    began = time.perf_counter()
    for child in children:
        child.delete()
    screen.print(f"  deleted in {(time.perf_counter() - began) * 1e3:.0f} ms")


def _run(vm: VM, command: str, note: str = "") -> None:
    began = time.perf_counter()
    run = vm.run(command)
    _line(f"[cyan]$[/cyan] {escape(command)}", time.perf_counter() - began, note)
    for line in (run.stdout + run.stderr).splitlines():
        screen.print(f"    {escape(line)}", soft_wrap=True)
    if run.exit_code:
        screen.print(f"    [yellow]exit code {run.exit_code}[/yellow]")


def _timed(text: str, step: Callable[[], T]) -> T:
    began = time.perf_counter()
    result = step()
    _line(escape(text), time.perf_counter() - began)
    return result


def _line(text: str, seconds: float, note: str = "") -> None:
    shown = f"  [dim]({escape(note)})[/dim]" if note else ""
    screen.print(f"  [green]{_ms(seconds):>8}[/green]  {text}{shown}", soft_wrap=True)


def _title(text: str) -> None:
    screen.print(f"\n[bold]{text}[/bold]")


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


# --- the server


@contextmanager
def _server() -> Iterator[Boxwood]:
    try:
        box = Boxwood()
        box.health()
    except ConnectionFailed:
        with _own_server() as box:
            yield box
        return
    screen.print(f"[dim]using the server at {escape(box.url)}[/dim]")
    with box:
        yield box


@contextmanager
def _own_server() -> Iterator[Boxwood]:
    boxwood = str(Path(sys.executable).with_name("boxwood"))
    home = Path(tempfile.mkdtemp(prefix="boxwood-demo-"))
    data = home / "data"
    command = [boxwood, "up", "--data", str(data), "--port", str(_free_port()), "--detach"]
    screen.print("[dim]starting a server; the first time it makes an image of this machine[/dim]")
    environment = {**os.environ, "BOXWOOD_DATA": str(data)}
    try:
        began = time.perf_counter()
        subprocess.run(command, check=True, env=environment, stdin=subprocess.DEVNULL)
        screen.print(f"[dim]ready after {time.perf_counter() - began:.1f} s[/dim]")
        os.environ["BOXWOOD_DATA"] = str(data)
        try:
            with Boxwood() as box:
                yield box
        finally:
            down = [boxwood, "down", "--data", str(data)]
            subprocess.run(down, check=True, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    except subprocess.CalledProcessError as error:
        raise SystemExit(error.returncode) from None
    finally:
        _remove(home)


def _remove(home: Path) -> None:
    """Overlays leave directories that not even their owner may read, unless he is root."""
    for place, directories, _ in os.walk(home):
        for name in directories:
            path = Path(place, name)
            if not path.is_symlink():
                with suppress(OSError):
                    path.chmod(0o700)
    shutil.rmtree(home, ignore_errors=True)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
