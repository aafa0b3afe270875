"""Terminals in real boxes, through the SDK and through `boxwood shell` on a terminal of the test's own."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator

import pytest

from amounts import amount
from boxwood import VM, AsyncBoxwood, NotFound, ResourceBusy, Timeout
from servers import Server, until

LINES = amount(500_000, 2_000_000)
COMMAND = [sys.executable, "-c", "from boxwood.cli.main import main; main()"]
DETACH, KILL = b"\x1dd", b"\x1dk"


@pytest.fixture
def vm(boxwood_server: Server) -> Iterator[VM]:
    with boxwood_server.client() as box, box.fork("ubuntu") as vm:
        yield vm


# --- the SDK


def test_a_shell(vm):
    with vm.shell(columns=101, rows=31, env={"WORD": "kept"}, cwd="/usr", term="xterm") as term:
        term.write("stty size; echo $WORD $PWD $TERM; tty; echo $0\r")
        shown = term.read_until("-bash\r\n", timeout=30)
        assert b"31 101\r\nkept /usr xterm\r\n/dev/pts/" in shown
        term.resize(90, 20)
        term.write("stty size\r")
        term.read_until("20 90\r\n", timeout=30)
        with pytest.raises(Timeout):
            term.read_until("never shown", timeout=0.2)
        term.write("sleep 1000\r")
        until(lambda: "sleep 1000" in vm.exec(["ps", "-e", "-o", "args"]).stdout)
        term.write("\x03echo code $?\r")
        term.read_until("code 130\r\n", timeout=30)
        term.write("exit 7\r")
        assert b"".join(term) is not None
        assert (term.end, term.exit_code, term.read()) == ("exit", 7, b"")
    with pytest.raises(NotFound):
        vm.get_session(term.session_id)


def test_a_program_with_arguments(vm):
    with vm.shell(
        ["python3", "-c", "import sys, os; print(sys.argv[1:], os.isatty(0)); sys.exit(4)", "a b", ""]
    ) as term:
        assert b"".join(term) == b"['a b', ''] True\r\n"
        assert (term.end, term.exit_code) == ("exit", 4)
    with vm.shell("echo $((6 * 7)); exit 5") as term:
        assert (b"".join(term), term.exit_code) == (b"42\r\n", 5)
    with pytest.raises(NotFound, match="no program"):
        vm.shell(["nothing-of-that-name"])
    assert not [one for one in vm.sessions() if one.index], "none is left behind"


def test_a_terminal_of_a_session(vm):
    session = vm.session()
    session.run("export WORD=exported; cd /srv")
    with session.pty() as term:
        term.write("echo $WORD $PWD; cat\r")
        term.read_until("exported /srv\r\n", timeout=30)
        with pytest.raises(ResourceBusy):
            session.pty()
        assert session.run("echo beside").stdout == "beside\n", "its runs go on beside"
    with session.pty() as term:
        shown = term.read_until("exported /srv\r\n", timeout=30)
        assert b"echo $WORD" in shown, "the scrollback"
        term.write("typed\r")
        term.read_until("typed\r\ntyped\r\n", timeout=30)
        term.kill()
        list(term)
        assert (term.end, term.exit_code) == ("killed", 137)
    with session.pty(idle_timeout=0.3) as term:
        list(term)
        assert term.end == "idle"
    with session.pty("sleep 1000", persist=False):
        until(lambda: "sleep" in vm.exec(["ps", "-e"]).stdout)
    until(lambda: "sleep" not in vm.exec(["ps", "-e"]).stdout)
    with session.pty("sleep 1000"):
        pass
    until(
        lambda: "sleep" in vm.exec(["ps", "-e"]).stdout
    )  # it lives, though its program may only now have been started
    session.delete()
    assert "sleep" not in vm.exec(["ps", "-e"]).stdout


async def test_the_awaitable_form(boxwood_server):
    async with AsyncBoxwood(boxwood_server.url, boxwood_server.key) as box, await box.fork("ubuntu") as vm:
        async with await vm.shell() as term:
            await term.write("echo $((6 * 7)); exit 3\r")
            shown = b"".join([data async for data in term])
            assert b"42\r\n" in shown and term.exit_code == 3


def test_nothing_is_typed_by_what_runs_there(vm):
    """Its controlling terminal is its own, and yet no keystrokes can be pushed into it; nor has anybody else its other end."""
    steal = (
        "import fcntl, os, termios\n"
        "assert os.tcgetpgrp(0) == os.getpgrp()\n"
        "for fd in 0, os.open('/dev/tty', os.O_RDWR):\n"
        "    try: fcntl.ioctl(fd, termios.TIOCSTI, b'x')\n"
        "    except OSError as error: print('refused', error.errno)\n"
        "print([os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if int(fd) > 3 and os.path.exists(f'/proc/self/fd/{fd}')])\n"
    )
    with vm.shell(["python3", "-c", steal]) as term:
        assert b"".join(term) == b"refused 1\r\nrefused 1\r\n[]\r\n"
    with vm.session().pty("cat", persist=False) as term:
        term.write("secret\r")
        term.read_until("secret\r\nsecret", timeout=30)
        peek = vm.exec(["sh", "-c", "for t in /dev/pts/[0-9]*; do cat < $t; done"], user="user", timeout=10)
        assert "Permission denied" in peek.stderr and not peek.stdout


def test_all_that_it_shows_arrives(vm):
    """Much, and to someone slow."""
    with vm.shell(f"stty -opost; seq {LINES}") as term:
        time.sleep(0.3)
        assert b"".join(term) == b"".join(b"%d\n" % number for number in range(1, LINES + 1))
        assert term.exit_code == 0


def test_much_is_typed(vm):
    with vm.shell("stty raw -echo; echo ready; head -c 3000000 | sha256sum") as term:
        term.read_until("ready")
        data = os.urandom(3_000_000)
        typing = threading.Thread(target=term.write, args=(data,))
        typing.start()
        assert hashlib.sha256(data).hexdigest().encode() in b"".join(term)
        typing.join()


@pytest.mark.parametrize("persist", [True, pytest.param(False, marks=pytest.mark.full)])
def test_a_vm_with_a_terminal_is_not_parked(make_server, persist):
    server = make_server(network="none", idle_seconds=0.05)
    with server.client() as box, box.fork("ubuntu") as vm:
        session = vm.session()
        with session.pty("echo $$; cat", persist=persist) as term:
            first = term.read_until("\n")
            time.sleep(0.4)
            term.write("still here\r")
            term.read_until("still here\r\nstill here")
        if persist:
            time.sleep(0.4)
            with session.pty() as term:
                assert term.read_until("still here").startswith(first)
                term.kill()
                list(term)
        assert vm.run("echo usable").stdout == "usable\n"


def test_a_fork_goes_on_without_its_sources_terminal(vm):
    session = vm.session()
    with session.pty() as term:
        term.write("echo here > /root/file; export X=1; echo d''one\r")
        term.read_until("done\r\n", timeout=30)
        with vm.fork() as child:
            assert child.run("cat /root/file; ps -e | grep -c pts").stdout == "here\n0\n"
        term.write("echo x$X\r")
        term.read_until("x1\r\n", timeout=30)


# --- the command


class Outside:
    """A terminal of ours with a program on it."""

    def __init__(
        self, server: Server, *words: str, columns: int = 80, rows: int = 24, command: list[str] = COMMAND
    ) -> None:
        self.master, slave = pty.openpty()
        self.slave = slave
        self.resize(columns, rows)
        self.before = termios.tcgetattr(slave)
        env = {**os.environ, "BOXWOOD_URL": server.url, "BOXWOOD_API_KEY": server.key, "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [*command, *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            start_new_session=True,
            preexec_fn=_control,
        )
        self.shown = b""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def until(self, text: bytes, seconds: float = 30) -> bytes:
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert self._more(deadline), self.shown[-2000:]
        found, _, self.shown = self.shown.partition(text)
        return found + text

    def _more(self, deadline: float) -> bool:
        if not select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0]:
            return False
        self.shown += os.read(self.master, 65536)
        return True

    def end(self, seconds: float = 30) -> int:
        """Its exit code; and the terminal is as it was."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            self._more(min(deadline, time.monotonic() + 0.05))
            assert time.monotonic() < deadline, self.shown[-2000:]
        self._more(time.monotonic() + 0.05)
        assert termios.tcgetattr(self.slave) == self.before
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def _control() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell has those that it starts in the background ignore it
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def outside(boxwood_server):
    made = []

    def make(*words: str, **how: object) -> Outside:
        made.append(Outside(boxwood_server, *words, **how))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_boxwood_shell(vm, outside):
    term = outside("shell", vm.id, columns=120, rows=40)
    term.until(b"# ")
    term.type(b"stty size; echo $TERM\r")
    term.until(b"40 120\r\nxterm-256color\r\n")
    term.resize(90, 33)
    term.type(b"until [ \"$(stty size)\" = '33 90' ]; do sleep 0.02; done; stty size\r")
    term.until(b"33 90\r\n")
    term.type(b"sleep 1000\r")
    until(lambda: "sleep 1000" in vm.exec(["ps", "-e", "-o", "args"]).stdout)
    term.type(b"\x03")
    term.type(b"echo code $?\r")
    term.until(b"code 130\r\n")
    term.type(b"exit 9\r")
    assert term.end() == 9
    assert not [one for one in vm.sessions() if one.index]


def test_detach_and_come_back(vm, outside):
    term = outside("shell", vm.id)
    term.until(b"# ")
    term.type(b"echo st''ill here; cat\r")
    term.until(b"still here\r\n")
    term.type(b"\x1d\x1d")  # one for the VM
    term.until(b"^]")
    term.type(DETACH)
    term.until(b"comes back")
    assert term.end() == 0
    (session,) = [one for one in vm.sessions() if one.index]
    again = outside("shell", vm.id, "--session", session.id)
    again.until(b"still here\r\n")
    again.type(KILL)
    assert again.end() == 137
    assert vm.get_session(session.id).id == session.id, "it was there before: it stays"


def test_a_command_and_no_terminal(vm, boxwood_server):
    env = {**os.environ, "BOXWOOD_URL": boxwood_server.url, "BOXWOOD_API_KEY": boxwood_server.key}
    done = subprocess.run([*COMMAND, "shell", vm.id, "stty -echo; read x; echo got $x; exit 6"], input=b"word", env=env, capture_output=True, timeout=60)  # fmt: skip
    assert done.stdout.endswith(b"got word\r\n")
    assert done.returncode == 6
    done = subprocess.run([*COMMAND, "shell", vm.id, "--", "printf", "%s|", "a b", "c"], stdin=subprocess.DEVNULL, env=env, capture_output=True, timeout=60)  # fmt: skip
    assert (done.stdout, done.returncode) == (b"a b|c|", 0)
    done = subprocess.run(
        [*COMMAND, "shell", "nothing"], stdin=subprocess.DEVNULL, env=env, capture_output=True, timeout=60
    )
    assert done.returncode == 1 and b"no VM" in done.stderr


@pytest.mark.parametrize(
    "signum", [signal.SIGTERM, *(pytest.param(one, marks=pytest.mark.full) for one in (signal.SIGHUP, signal.SIGINT))]
)
def test_a_signal_leaves_and_tidies(vm, outside, signum):
    term = outside("shell", vm.id)
    term.until(b"# ")
    term.type(b"printf '\\033[?1049h\\033[?25l'; cat\r")
    term.until(b"\x1b[?1049h\x1b[?25l")
    term.process.send_signal(signum)
    assert term.end() in (128 + signum, 130)
    assert b"\x1b[?25h" in term.shown and b"\x1b[?1049l" in term.shown
    assert "cat" in vm.exec(["ps", "-e"]).stdout, "what runs there goes on"


def test_the_server_dies_and_comes_back(make_server):
    """So does the shell, by itself; and whoever does not want to wait leaves."""
    server = make_server(network="none")
    with server.client() as box:
        vm = box.fork("ubuntu")
    term = Outside(server, "shell", vm.id)
    try:
        term.until(b"# ")
        term.type(b"me=$$; echo kept; cat\r")
        term.until(b"kept\r\n")
        server.kill9()
        term.until(b"waiting for the server")
        server.start()
        term.until(b"kept\r\n")
        term.type(b"\x04")
        term.until(b"# ")
        term.type(b"echo x$((me == $$))\r")
        term.until(b"x1\r\n")
        server.kill9()
        term.until(b"waiting for the server")
        term.type(DETACH)
        assert term.end() == 0
        assert b"comes back" in term.shown
    finally:
        term.close()


def test_a_box_that_dies_ends_it(boxwood_server, outside):
    with boxwood_server.client() as box:
        vm = box.fork("ubuntu")
        term = outside("shell", vm.id)
        term.until(b"# ")
        vm.delete()
        assert term.end() == 1
        assert b"no longer at the terminal" in term.shown


@pytest.mark.full
def test_full_screen_programs(vm, outside):
    if vm.run("command -v vim top").exit_code:
        pytest.skip("the image has neither")
    term = outside("shell", vm.id)
    term.until(b"# ")
    term.type(b"top\r")
    term.until(b"load average")
    term.type(b"q")
    term.until(b"# ")
    term.type(b"vim -u NONE -i NONE /root/file\r")
    term.until(b"\x1b[?1049h")
    term.until(b"~")
    term.type(b"ihello from vim\x1b:wq\r")
    term.until(b"\x1b[?1049l")
    term.type(b"exit 0\r")
    assert term.end() == 0
    assert vm.read_text("/root/file") == "hello from vim\n"


# ncurses looks for a new size before it waits for a key: one that comes in between is seen when the waiting ends.
CURSES = """
import curses
def pressed(screen):
    while True:
        try:
            return screen.getkey()
        except curses.error:
            pass
def main(screen):
    screen.timeout(500)
    while True:
        screen.erase()
        screen.border()
        rows, columns = screen.getmaxyx()
        screen.addstr(1, 1, f"size {columns}x{rows}", curses.A_REVERSE)
        screen.refresh()
        key = pressed(screen)
        if key == "q":
            return
        if key != "KEY_RESIZE":
            screen.addstr(2, 1, f"key {key}")
            screen.refresh()
            pressed(screen)
curses.wrapper(main)
"""


def test_a_full_screen_program(vm, outside):
    """Also where the image has neither vim nor top: it is told of a new size, hears of keys that are sequences, and
    leaves the screen as it was."""
    if vm.run("python3 -c 'import curses; curses.setupterm(\"xterm-256color\")'").exit_code:
        pytest.skip("the image's python3 has no curses, or does not know xterm-256color")
    vm.write_file("/root/screen.py", CURSES)
    term = outside("shell", vm.id, columns=100, rows=30)
    term.until(b"# ")
    term.type(b"python3 /root/screen.py\r")
    term.until(b"\x1b[?1049h")
    term.until(b"size 100x30")
    term.resize(71, 22)
    term.until(b"71x22")
    term.type(b"\x1bOA")
    term.until(b"key KEY_UP")
    term.type(b"xq")
    term.until(b"\x1b[?1049l")
    term.until(b"# ")
    term.type(b"exit 4\r")
    assert term.end() == 4


@pytest.mark.skipif(not shutil.which("script"), reason="no script here")
def test_through_script(vm, outside, tmp_path):
    log = tmp_path / "log"
    term = outside("-qec", f"{' '.join(map(_quoted, COMMAND))} shell {vm.id}", str(log), command=["script"])
    term.until(b"# ")
    term.type(b"stty size; exit 8\r")
    term.until(b"24 80\r\n")
    assert term.end() == 8
    assert b"24 80" in log.read_bytes()


@pytest.mark.full
@pytest.mark.skipif(not shutil.which("tmux"), reason="no tmux here")
def test_through_tmux(vm, outside, tmp_path):
    words = " ".join(map(_quoted, COMMAND))
    term = outside("-S", str(tmp_path / "s"), "-f", "/dev/null", "new-session", f"{words} shell {vm.id}", command=["tmux"], columns=100, rows=30)  # fmt: skip
    term.until(b"# ")
    term.type(b"stty size; echo $TERM\r")
    term.until(b"29 100")
    term.type(b"exit\r")
    term.end()


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"
