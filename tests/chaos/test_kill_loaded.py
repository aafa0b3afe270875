"""kill -9 of the server in the middle of many runs and terminals, 100 and ten in `make test-full` (issue 6): no one who listens loses anything."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from amounts import amount
from boxwood import VM, ConnectionFailed, Pty, Run, Session
from chaos.sse import Event, connect, events
from chaos.test_streams import Listener
from servers import Server, until

VMS, SESSIONS = amount((4, 3), (20, 5))  # in each
TERMINALS = amount(3, 10)
SIZES = [0, 2_000, 200_000]  # bytes before the server dies, beside a line: also more than memory keeps
ENDED_MEANWHILE = 4  # every so manieth run ends while there is no server


class RawListener:
    """Follows a run as any client of server-sent events does: after a break it says which event was its last."""

    def __init__(self, server: Server, vm: VM, run_id: str) -> None:
        self.heard: list[Event] = []
        self.connections = 0
        self._server = server
        self._path = f"/v1/vms/{vm.id}/runs/{run_id}/events"
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not (self.heard and self.heard[-1].kind == "exit"):
            try:
                last = self.heard[-1].ident if self.heard else ""
                with connect(self._server, "GET", self._path, last=last) as answer:
                    self.connections += 1
                    for event in events(answer):
                        self.heard.append(event)
            except (OSError, http.client.HTTPException):
                threading.Event().wait(0.05)  # there is no server

    def output(self, stream: str) -> bytes:
        return b"".join(event.bytes() for event in list(self.heard) if event.kind == stream)

    def rest(self) -> None:
        self._thread.join(90)
        assert not self._thread.is_alive(), "it listens still"


class Busy:
    """One of the many: what it runs, and who listens to it."""

    def __init__(self, server: Server, vm: VM, number: int) -> None:
        self.vm, self.number = vm, number
        self.before = b"begun %d\n" % number + b"%d" % (number % 10) * SIZES[number % len(SIZES)] + b"\n"
        self.after = b"".join(b"%d\n" % n for n in range(number, number + 2_000))
        fill = f"head -c {SIZES[number % len(SIZES)]} /dev/zero | tr '\\0' {number % 10}; echo"
        after = f"seq {number} {number + 1_999}; echo err {number} >&2; exit {number}"
        command = f"mkfifo /root/go{number}; echo begun {number}; {fill}; read x < /root/go{number}; {after}"
        self.run: Run = vm.run(command, session=number // VMS, background=True)
        self.ended_meanwhile = number % ENDED_MEANWHILE == 0
        self.sdk = Listener(self.run.events()) if number % 3 == 0 else None
        self.raw = RawListener(server, vm, str(self.run.run_id)) if number % 3 == 1 else None

    @property
    def has_begun(self) -> bool:
        """Whoever listens has heard all there is so far."""
        if self.sdk is not None:
            return self.sdk.heard() == self.before
        if self.raw is not None:
            return self.raw.output("stdout") == self.before
        return self.run.refresh().stdout_bytes == self.before

    def go_on_alone(self, server: Server) -> None:
        """Let it go on though there is no server that could be asked to."""
        gates = [Path(f"/proc/{pid}/root/root/go{self.number}") for pid in server.box_pids()]
        (gate,) = [gate for gate in gates if _exists(gate)]
        gate.write_text("go\n")

    def check(self, again: VM) -> None:
        """Whoever listened over the death of the server, and whoever asks then, has all of it, once."""
        stdout, stderr = self.before + self.after, b"err %d\n" % self.number
        if self.sdk is not None:
            assert self.sdk.rest().exit_code == self.number
            assert (self.sdk.heard(), self.sdk.heard("stderr")) == (stdout, stderr)
        if self.raw is not None:
            self.raw.rest()
            assert (self.raw.output("stdout"), self.raw.output("stderr")) == (stdout, stderr)
            assert self.raw.heard[-1].told["exit_code"] == self.number
            assert self.raw.connections == 2
        run = again.get_run(str(self.run.run_id)).wait(90)
        assert (run.stdout_bytes, run.stderr_bytes) == (stdout, stderr)
        assert (run.state, run.exit_code) == ("completed", self.number)


@pytest.mark.timeout(300)
def test_the_server_dies_in_the_middle_of_many_runs_and_terminals(make_server: Callable[..., Server]) -> None:
    server = make_server(network="internet")
    with ExitStack() as stack:
        box = stack.enter_context(server.client())
        vms = [box.fork("ubuntu") for _ in range(VMS)]
        sessions = [vm.session() for vm in vms[:TERMINALS]]
        looks = [stack.enter_context(session.pty(["bash", "--norc", "-i"])) for session in sessions]
        runs = [Busy(server, vms[number % VMS], number) for number in range(VMS * SESSIONS)]
        for number, look in enumerate(looks):
            _begin(look, number)
        until(lambda: all(one.has_begun for one in runs))
        server.kill9()
        for look in looks:
            with pytest.raises(ConnectionFailed):
                while look.read(timeout=60):
                    pass
        for one in runs:
            if one.ended_meanwhile:
                one.go_on_alone(server)
        server.start()
        for vm in vms:
            numbers = " ".join(str(one.number) for one in runs if one.vm is vm and not one.ended_meanwhile)
            vm.exec(["sh", "-c", f"for n in {numbers}; do echo > /root/go$n; done"], timeout=60, check=True)
        with server.client() as other:
            for one in runs:
                one.check(other.get(one.vm.id))
            for number, session in enumerate(sessions):
                _go_on(other.get(session.vm.id).get_session(session.id), number)


def _exists(gate: Path) -> bool:
    try:
        return gate.exists()
    except OSError:  # whose root it is below has just ended
        return False


def _begin(look: Pty, number: int) -> None:
    look.write(f"me=$$; word=w{number}; cd /srv; echo rea''dy {number}\r")
    look.read_until(f"ready {number}\r\n", timeout=60)


def _go_on(session: Session, number: int) -> None:
    """It shows again what it has shown, and its shell is the same."""
    with session.pty() as look:
        look.read_until(f"ready {number}\r\n", timeout=60)
        look.write("echo $word $PWD $((me == $$)); exit 5\r")
        look.read_until(f"w{number} /srv 1\r\n", timeout=60)
        list(look)
        assert (look.end, look.exit_code) == ("exit", 5)
