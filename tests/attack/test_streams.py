"""Whoever follows runs, or writes to them, and does not keep up: the server's memory stays as it is, and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from base64 import b64decode

from amounts import amount
from boxwood import Boxwood, Conflict, Run
from boxwood.engine.agent.intake import HELD
from servers import Server, until

READERS = amount(3, 12)
FLOOD = amount(16, 24) << 20  # bytes that each is to be told
GROWTH_MIB = 2 * FLOOD >> 20  # all of them together may cost the server less than two of them say
INPUT_MIB = 48


def resident(pid: int) -> float:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")) / 1024


def begin(server: Server, vm: str, run: str) -> socket.socket:
    """A request for all that a run has put out, of which nothing is read."""
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    head = f"GET /v1/vms/{vm}/runs/{run}/events?encoding=base64 HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\n"
    sock.sendall(f"{head}authorization: Bearer {server.key}\r\nconnection: close\r\n\r\n".encode())
    return sock


def told(sock: socket.socket) -> tuple[int, bool]:
    """Bytes of stdout, each where it belongs, and whether the end was told."""
    total, ended, chunked = 0, False, sock.makefile("rb")
    for line in chunked:
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            if "data" in event:
                assert event["offset"] == total
                total += len(b64decode(event["data"]))
            ended = ended or "exit_code" in event
    return total, ended


def test_readers_that_do_not_read(boxwood_server: Server) -> None:
    server = boxwood_server
    with server.client() as box, box.fork("ubuntu") as vm, contextlib.ExitStack() as held:
        run = vm.run(f"head -c {FLOOD} /dev/zero", background=True)
        socks = [held.enter_context(begin(server, vm.id, str(run.run_id))) for _ in range(READERS)]
        run.wait()  # nobody has read, and it has ended all the same
        before = resident(server.pid)
        socks += [held.enter_context(begin(server, vm.id, str(run.run_id))) for _ in range(READERS)]
        for _ in range(20):  # others are answered meanwhile
            assert vm.run("echo here").stdout == "here\n"
        assert resident(server.pid) - before < GROWTH_MIB
        found: list[tuple[int, bool]] = []
        threads = [threading.Thread(target=lambda sock=sock: found.append(told(sock))) for sock in socks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert found == [(FLOOD, True)] * (2 * READERS)
        assert resident(server.pid) - before < GROWTH_MIB


def test_input_that_nobody_reads(boxwood_server: Server) -> None:
    """It is taken as far as the box has room for it, and no further; other runs of the VM go on."""
    server = boxwood_server
    with server.client() as box, box.fork("ubuntu") as vm:
        run = vm.exec(["sleep", "1000"], background=True, stdin_open=True)
        before = resident(server.pid)
        writing = threading.Thread(target=_write_on, args=(box, run))
        writing.start()
        path = f"/v1/vms/{vm.id}/runs/{run.run_id}"
        until(lambda: given(server, path) >= HELD)
        assert vm.run("echo here").stdout == "here\n"
        assert given(server, path) <= HELD + (2 << 20)
        assert resident(server.pid) - before < INPUT_MIB
        assert run.cancel()
        writing.join(60)
        assert not writing.is_alive()


def given(server: Server, path: str) -> int:
    """How much it has, as the server says to whoever gives nothing; -1: somebody else writes."""
    status, answer = server.request("POST", f"{path}/stdin")
    assert status in (200, 409), answer
    return int(answer["offset"]) if status == 200 else -1


def _write_on(box: Boxwood, run: Run) -> None:
    with contextlib.suppress(Conflict):  # until the run ends
        run.write_stdin(bytes(16 << 20))
