"""Runs that are followed while their server, or their box, is killed: nothing is lost, nothing comes twice, no one hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable

from amounts import amount
from boxwood import BoxwoodError, ConnectionFailed, RunExited, RunOutput, RunStarted
from boxwood.core.liverun import INLINE_BYTES
from servers import Server, until

Make = Callable[..., Server]
FOLLOWED = amount(4, 8)
KEPT = [100, INLINE_BYTES + 1, 3_000_000]  # bytes before the server dies: in memory; in a file; more than a box keeps


class Listener:
    """Follows a run in a thread of its own."""

    def __init__(self, events) -> None:
        self.events: list = []
        self.error: BoxwoodError | None = None
        self._thread = threading.Thread(target=self._listen, args=(events,))
        self._thread.start()

    def _listen(self, events) -> None:
        try:
            for event in events:
                self.events.append(event)
        except BoxwoodError as error:
            self.error = error

    def heard(self, stream: str = "stdout") -> bytes:
        return b"".join(e.data for e in list(self.events) if isinstance(e, RunOutput) and e.stream == stream)

    def rest(self) -> RunExited:
        self._thread.join(90)
        assert not self._thread.is_alive(), "it listens still"
        assert self.error is None, self.error
        assert [type(event) for event in self.events].count(RunStarted) == 1
        assert isinstance(self.events[-1], RunExited)
        return self.events[-1]


def test_streams_go_on_over_the_death_of_the_server(server: Server) -> None:
    box = server.client()
    vm = box.fork("ubuntu")
    vm.run("mkfifo /root/go")
    listeners = []
    for number in range(FOLLOWED):
        size = KEPT[number % len(KEPT)]
        command = (
            f"head -c {size} /dev/zero | tr '\\0' {number}; echo err {number} >&2; "
            f"until [ -e /root/gone ]; do sleep 0.02; done; seq 20000; exit {number}"
        )
        listeners.append(Listener(vm.run_stream(command, session=number + 1)))
    for number, listener in enumerate(listeners):
        size = KEPT[number % len(KEPT)]
        until(lambda listener=listener, size=size: len(listener.heard()) == size and listener.heard("stderr"))
    server.kill9()
    server.start()
    vm.run("touch /root/gone", session=0)
    after = b"".join(b"%d\n" % n for n in range(1, 20001))
    for number, listener in enumerate(listeners):
        assert listener.rest().exit_code == number
        assert listener.heard() == b"%d" % number * KEPT[number % len(KEPT)] + after
        assert listener.heard("stderr") == b"err %d\n" % number
    box.close()


def test_a_server_that_ends_in_good_order_is_followed_to_the_next(server: Server) -> None:
    with server.client() as box:
        vm = box.fork("ubuntu")
        listener = Listener(vm.run_stream("echo a; until [ -e /root/gone ]; do sleep 0.02; done; echo b"))
        until(lambda: listener.heard() == b"a\n")
        server.restart()
        vm.run("touch /root/gone", session=1)
        assert listener.rest().ok
        assert listener.heard() == b"a\nb\n"


def test_everything_dies(server: Server) -> None:
    """Server, zygote and boxes at once: the next server says how it ended, with what had been put out."""
    with server.client() as box:
        vm = box.fork("ubuntu")
        listener = Listener(vm.run_stream(f"head -c {2 * INLINE_BYTES} /dev/zero; sleep 1000"))
        until(lambda: len(listener.heard()) == 2 * INLINE_BYTES)
        server.kill9_all()
        server.start()
        ended = listener.rest()
        assert (ended.state, ended.exit_code) == ("failed", None) and ended.fail_reason
        assert listener.heard() == bytes(2 * INLINE_BYTES)


def test_input_goes_on_over_the_death_of_the_server(server: Server) -> None:
    """The pipe is the box's: what was given is there once, whatever the server has answered."""
    with server.client() as box:
        vm = box.fork("ubuntu")
        run = vm.run("cat", background=True, stdin_open=True)
        listener = Listener(run.events())
        run.write_stdin("before\n")
        until(lambda: listener.heard() == b"before\n")
        server.kill9()
        writing = threading.Thread(target=_write, args=(run,))
        writing.start()
        server.start()
        writing.join(60)
        assert listener.rest().ok
        assert listener.heard() == b"before\n" + b"".join(b"line %d\n" % n for n in range(200))


def _write(run) -> None:
    """Whoever is refused because nobody is there writes again, from where he was."""
    for number in range(200):
        while True:
            try:
                run.write_stdin(f"line {number}\n")
                break
            except ConnectionFailed:
                threading.Event().wait(0.05)
    run.close_stdin()
