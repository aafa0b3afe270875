"""kill -9 of the server, and of boxes, while terminals are looked at (issue 6: they re-attach)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from amounts import amount
from boxwood import ConnectionFailed, NotFound, RateLimited
from chaos.test_kill_boxes import _box_of as box_of
from servers import Server, until

MANY = amount(3, 10)


def test_the_server_dies_while_ten_are_looked_at(server: Server) -> None:
    """Nobody's shell notices; what it says meanwhile is shown to whoever comes back, and what was not to persist ends."""
    with ExitStack() as stack:
        box = stack.enter_context(server.client())
        vm = box.fork("ubuntu")
        sessions = [vm.session() for _ in range(MANY)]
        looks = [stack.enter_context(session.pty(["bash", "--norc", "-i"])) for session in sessions]
        for number, term in enumerate(looks):
            term.write(f"me=$$; word=w{number}; mkfifo /tmp/go{number}; echo rea''dy\r")
            term.read_until("ready\r\n", timeout=60)
            term.write(f"read x < /tmp/go{number}; echo mean''while\r")
        fleeting = stack.enter_context(vm.shell("echo fleeting; sleep 1000"))
        fleeting.read_until("fleeting", timeout=60)
        server.kill9()
        for term in looks:
            with pytest.raises(ConnectionFailed):
                while term.read(timeout=60):
                    pass
        server.start()
    with server.client() as box:
        vm = box.get(vm.id)
        vm.run("for go in /tmp/go*; do echo > $go; done", timeout=60, check=True)
        until(lambda: "sleep" not in vm.exec(["ps", "-e"]).stdout)
        for number, session in enumerate(sessions):
            with vm.get_session(session.id).pty() as term:
                term.read_until("meanwhile\r\n", timeout=60)
                term.write("echo $word $((me == $$)); exit 5\r")
                term.read_until(f"w{number} 1\r\n", timeout=60)
                list(term)
                assert (term.end, term.exit_code) == ("exit", 5)


def test_the_server_dies_again_and_again(server: Server) -> None:
    with server.client() as box:
        vm = box.fork("ubuntu")
        session = vm.session()
        with session.pty("cat") as term:
            term.write("round 0\r")
            term.read_until("round 0\r\nround 0", timeout=60)
            for number in range(1, amount(2, 4)):
                server.kill9()
                server.start()
                with box.get(vm.id).get_session(session.id).pty() as again:
                    again.read_until(f"round {number - 1}\r\nround {number - 1}", timeout=60)
                    again.write(f"round {number}\r")
                    again.read_until(f"round {number}\r\nround {number}", timeout=60)
        session.delete()
        with pytest.raises(NotFound):
            session.pty()


def test_a_box_dies(make_server: Callable[..., Server]) -> None:
    """Whoever looks is told; the next look is at a new terminal, in the VM as it is on its disk."""
    server = make_server(ready_boxes=0)
    with server.client() as box:
        vm = box.fork("ubuntu")
        session = vm.session()
        with session.pty() as term:
            term.write("echo kept > /root/file; sync; echo writ''ten\r")
            term.read_until("written", timeout=60)
            os.kill(box_of(server, vm), signal.SIGKILL)
            with pytest.raises(ConnectionFailed, match="box"):
                while term.read(timeout=60):
                    pass
        with session.pty() as term:
            term.write("cat /root/file; exit 0\r")
            assert b"kept\r\n" in b"".join(term)


def test_those_of_an_earlier_server_count(server: Server) -> None:
    with server.client() as box:
        vm = box.fork("ubuntu")
        for _ in range(16):
            vm.session().pty("cat").close()
        server.kill9()
        server.start()
        with pytest.raises(RateLimited, match="16 terminals"):
            vm.session().pty("cat")
        next(one for one in vm.sessions() if one.index == 1).delete()
        with vm.session().pty("echo room") as term:
            assert b"".join(term) == b"room\r\n"
