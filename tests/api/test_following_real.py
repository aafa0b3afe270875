"""Runs that are followed, and given input, on a real server with real boxes."""

from __future__ import annotations

import asyncio
import hashlib
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from amounts import amount
from boxwood import VM, AsyncBoxwood, Conflict, InvalidState, RunExited, RunOutput, RunStarted
from servers import Server

SIZE = amount(5, 20) << 20


@pytest.fixture(scope="module")
def vm(boxwood_server: Server) -> Iterator[VM]:
    with boxwood_server.client() as box, box.fork("ubuntu") as vm:
        yield vm


def put_out(events, stream="stdout") -> bytes:
    return b"".join(e.data for e in events if isinstance(e, RunOutput) and e.stream == stream)


@pytest.mark.parametrize("env", [None, {}])
def test_output_comes_before_the_end(vm: VM, env: dict[str, str] | None) -> None:
    """In a session and beside it. The command goes on only once its first line has been heard of."""
    vm.run("rm -f /root/heard")
    command = "echo ünï; echo err >&2; until [ -e /root/heard ]; do sleep 0.01; done; exit 5"
    events = []
    for event in vm.run_stream(command, session=1, env=env, timeout=60):
        if isinstance(event, RunOutput) and event.text == "ünï\n":
            vm.run("touch /root/heard")
        events.append(event)
    assert isinstance(events[0], RunStarted) and isinstance(events[-1], RunExited)
    assert (events[-1].exit_code, put_out(events, "stderr")) == (5, b"err\n")


def test_a_great_deal_of_bytes_of_every_kind(vm: VM) -> None:
    command = f"import random; import sys; sys.stdout.buffer.write(random.Random(7).randbytes({SIZE}))"
    events = list(vm.run_stream(["python3", "-c", command]))
    digest = hashlib.sha256(random.Random(7).randbytes(SIZE)).hexdigest()
    assert hashlib.sha256(put_out(events)).hexdigest() == digest
    again = vm.get_run(events[0].run_id)
    assert put_out(again.events()) == put_out(events)


def test_one_who_answers_what_he_hears(vm: VM) -> None:
    """Turn about, in a session, beside it, and without a shell."""
    program = "import sys\nfor line in sys.stdin: print(int(line) + 1, flush=True)"
    for start in (
        lambda: vm.run(["python3", "-c", program], background=True, stdin_open=True, stdin="0\n"),
        lambda: vm.run(["python3", "-c", program], background=True, stdin_open=True, stdin="0\n", env={}),
        lambda: vm.exec(["python3", "-c", program], background=True, stdin_open=True, stdin="0\n"),
    ):
        run, last = start(), None
        for event in run.events():
            if isinstance(event, RunOutput):
                last = int(event.text)
                if last < 20:
                    run.write_stdin(f"{last}\n")
                else:
                    run.close_stdin()
            elif isinstance(event, RunExited):
                assert event.ok, event
        assert last == 20


def test_a_fork_beside_a_run_has_what_idle_shells_have_come_to(vm: VM) -> None:
    """Also what is still on its way when it is asked for: a large state takes its time."""
    running = vm.run("sleep 1000", session=7, background=True)
    vm.run("large=$(printf '%3000000s' x); word=kept", session=8)
    with vm.fork() as child:
        assert child.run('echo "$word ${#large}"', session=8).stdout == "kept 3000000\n"
    assert running.cancel()


def test_many_bytes_into_one_who_reads_slowly(vm: VM) -> None:
    data = random.Random(3).randbytes(6 << 20)
    run = vm.run("sleep 0.3; sha256sum", background=True, stdin_open=True)
    run.write_stdin(data[:5])
    run.write_stdin(data[5:])
    run.close_stdin()
    assert run.wait(60).stdout.split()[0] == hashlib.sha256(data).hexdigest()
    with pytest.raises(InvalidState):
        run.write_stdin("more")


def test_one_who_reads_no_more(vm: VM) -> None:
    run = vm.exec(["sh", "-c", "exec <&-; sleep 100"], background=True, stdin_open=True)
    with pytest.raises(Conflict):
        for _ in range(200):  # until he has closed it
            run.write_stdin("x")
            threading.Event().wait(0.01)
    assert run.cancel()


def test_awaitable(boxwood_server: Server, vm: VM) -> None:
    async def go() -> bytes:
        async with AsyncBoxwood(boxwood_server.url, boxwood_server.key) as box:
            run = await box.vm(vm.id).run("cat", background=True, stdin_open=True, env={})
            await run.write_stdin("a" * 100_000)
            await run.close_stdin()
            return put_out([event async for event in run.events()])

    assert asyncio.run(go()) == b"a" * 100_000


def test_the_command_prints_as_it_comes_and_hands_on_what_it_reads(boxwood_server: Server, vm: VM) -> None:
    environment = {"BOXWOOD_URL": boxwood_server.url, "BOXWOOD_API_KEY": boxwood_server.key, "PATH": "/usr/bin:/bin"}
    command = [str(Path(sys.executable).with_name("boxwood")), "run", "-i", vm.id, "cat; exit 6"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None
        for number in range(3):  # each is answered before the next is sent
            process.stdin.write(b"line %d\n" % number)
            process.stdin.flush()
            assert process.stdout.readline() == b"line %d\n" % number
        process.stdin.close()
        assert process.stdout.read() == b""
    assert process.returncode == 6
