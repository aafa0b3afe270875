"""What boxes have in common of their memory: the nursery, and the steward that has idle agents give back what they have
for themselves and need not. Nothing of it may ever change what an agent holds."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import select
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NoReturn, TypeVar

import anyio
import pytest

from amounts import amount
from boxfixtures import Runner, booted
from boxwood.engine import kernel as k
from boxwood.engine import tracing
from boxwood.engine.agent.procs import children
from boxwood.engine.api import EngineError
from boxwood.engine.nursery import Born, Nursery
from boxwood.engine.rehearsal import rehearse
from boxwood.engine.steward import _Round, _Watched
from boxwood.engine.template import Template, _Mapping

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
only_here = pytest.mark.skipif(os.uname().machine != "x86_64", reason="ptrace's registers are known of x86-64 only")
PAGE, GETPID = 4096, 39
T = TypeVar("T")


def zygotes(data: Path) -> dict[str, int]:
    """The processes that a zygote has beside it, by name."""
    zygote = int(json.loads((data / "zygote.json").read_text())["pid"])
    return {Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in children(zygote)}


def own_kib(pid: int) -> int:
    """Memory that no other process has."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def agent(runner: Runner) -> int:
    """Its process, by that of a run in its only session."""
    mark = f"0.5{time.monotonic_ns()}"
    found: list[int] = []

    async def look() -> None:
        for _ in range(500):
            for entry in Path("/proc").glob("[0-9]*"):
                with suppress(FileNotFoundError, ProcessLookupError):
                    if (entry / "cmdline").read_bytes() == f"sleep\0{mark}\0".encode():
                        found.append(parent(parent(int(entry.name))))
            if found:
                return
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as both:
        both.start_soon(look)
        await runner.run(f"sleep {mark}")
    return found[0]


@pytest.fixture
async def common(runner: Runner, data: Path) -> AsyncIterator[Runner]:
    """One whose box was forked when the nursery's memory was a file; those that come first keep what they have."""
    nursery = zygotes(data)["nursery"]
    with anyio.fail_after(20):
        while Path(f"/proc/{nursery}/maps").read_text().count("/memfd:boxes") < 10 or traced(nursery):
            await anyio.sleep(0.01)
    async with booted(Runner(runner.engine, runner.golden)) as made:
        yield made


def traced(pid: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()


# --- of boxes


@only_here
@pytest.mark.anyio
async def test_an_idle_box_gives_back_and_goes_on(common: Runner) -> None:
    await common.run("cd /tmp; export A=1; b=2; f() { echo $A $b $PWD; }")
    pid = await agent(common)
    before = own_kib(pid)
    with anyio.fail_after(30):
        while own_kib(pid) > before - 500:
            await anyio.sleep(0.05)
    assert (await common.run("f")).text == "1 2 /tmp\n"
    for size in (1, 100_000):
        assert len((await common.run(f"head -c {size} /dev/zero")).out) == size
    assert (await common.run("(exit 7)")).code == 7


@only_here
@pytest.mark.anyio
async def test_giving_back_again_and_again_harms_nothing(common: Runner, data: Path) -> None:
    """While it works and while it rests, as often as can be."""
    pid = await agent(common)
    pidfd = os.pidfd_open(pid)
    template = of_boxes(zygotes(data)["nursery"])
    given = refused = 0

    def give() -> None:
        nonlocal given, refused
        try:
            given += template.give_back(pid, pidfd, 1)
        except tracing.Busy:
            refused += 1

    async with anyio.create_task_group() as both:

        async def ill_treat() -> None:
            while True:
                await anyio.to_thread.run_sync(give)

        both.start_soon(ill_treat)
        for number in range(amount(60, 600)):
            size = (number % 7) * 10_000
            ran = await common.run(f"n={number}; head -c {size} /dev/zero; echo $n >&2; cat", stdin=b"x" * size)
            assert (ran.code, len(ran.out), bytes(ran.err)) == (0, 2 * size, f"{number}\n".encode())
        both.cancel_scope.cancel()
    os.close(pidfd)
    assert given, refused


def of_boxes(nursery: int) -> Template:
    """The template that boxes of this nursery have, made anew from its file."""
    for entry in Path(f"/proc/{nursery}/fd").iterdir():
        if "memfd:boxes" in os.readlink(entry):
            file = os.open(entry, os.O_RDONLY)
            made = Template.__new__(Template)
            made._inode, made._pages = os.fstat(file).st_ino, mmap.mmap(file, 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
            os.close(file)
            lines = (line.split() for line in Path(f"/proc/{nursery}/maps").read_text().splitlines())
            ours = [(line[0].split("-"), line[2]) for line in lines if line[5:6] == ["/memfd:boxes"]]
            made._places = [
                _Mapping(int(start, 16), int(end, 16) - int(start, 16), int(at, 16)) for (start, end), at in ours
            ]
            return made
    raise AssertionError("its memory is no file")


@pytest.mark.anyio
async def test_boxes_live_without_a_steward(common: Runner, data: Path) -> None:
    os.kill(zygotes(data)["steward"], signal.SIGKILL)
    assert (await common.run("echo alive")).text == "alive\n"
    other = Runner(common.engine, common.golden)
    await other.boot()
    assert (await other.run("echo alive")).text == "alive\n"


@pytest.mark.anyio
async def test_a_nursery_that_is_short_of_descriptors_costs_no_box(runner: Runner, data: Path) -> None:
    nursery = zygotes(data)["nursery"]
    limits = resource.prlimit(nursery, resource.RLIMIT_NOFILE)
    held = len(os.listdir(f"/proc/{nursery}/fd"))
    other = Runner(runner.engine, runner.golden)
    for short in (held, held + 1):
        resource.prlimit(nursery, resource.RLIMIT_NOFILE, (short, limits[1]))
        refused = 0
        while not refused:  # some are ready
            try:
                await other.boot()
            except EngineError:
                refused += 1
    assert (await runner.run("echo alive")).text == "alive\n"
    resource.prlimit(nursery, resource.RLIMIT_NOFILE, limits)
    assert zygotes(data)["nursery"] == nursery
    await other.boot()
    assert (await other.run("echo alive")).text == "alive\n"


# --- of the nursery


@contextmanager
def nursery(live: Callable[[socket.socket], NoReturn]) -> Iterator[tuple[Nursery, socket.socket, Callable[[], Born]]]:
    """One whose children do this; our end of their hooks, and what makes one."""
    made = Nursery(lambda: None, live, may_return=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        yield made, ours, lambda: made.fork(theirs, idle=False)
    finally:
        ours.close()
        theirs.close()
        os.kill(made.pid, signal.SIGKILL)
        made.close()


def test_ends_are_told_with_their_numbers() -> None:
    def live(hook: socket.socket) -> NoReturn:
        os._exit(hook.recv(1)[0])

    with nursery(live) as (made, hook, fork):
        born = [fork() for _ in range(3)]
        assert sorted(one.number for one in born) == [1, 2, 3]
        codes = [5, 6, 7]
        for code in codes:
            hook.send(bytes([code]))
        ends: list[tuple[int, int]] = []
        while len(ends) < 3:
            assert select.select([made], [], [], 10)[0]
            ends += made.ended()
        assert sorted(number for number, _ in ends) == [1, 2, 3]
        assert sorted(os.waitstatus_to_exitcode(status) for _, status in ends) == codes
        for one in born:
            os.close(one.pidfd)


def test_a_rehearsal_that_is_killed_leaves_no_shell(tmp_path: Path) -> None:
    made = Nursery(lambda: rehearse(str(tmp_path / "place"), 10_000), lambda hook: os._exit(0), may_return=True)
    held: list[int] = []
    while not held:
        for pid in children(made.pid):
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text() == "bash\n":
                    held.append(os.pidfd_open(pid))
    os.kill(made.pid, signal.SIGKILL)
    made.close()
    for fd in held:
        assert select.select([fd], [], [], 10)[0]
        os.close(fd)


def test_a_nursery_that_dies_takes_all_with_it() -> None:
    def live(hook: socket.socket) -> NoReturn:
        k.set_death_signal(signal.SIGKILL)
        hook.send(b"here")
        signal.pause()
        os._exit(0)

    with nursery(live) as (made, hook, fork):
        one = fork()
        hook.recv(4)
        os.kill(made.pid, signal.SIGKILL)
        assert select.select([one.pidfd], [], [], 10)[0]
        with pytest.raises(EOFError):
            list(made.ended())
        with pytest.raises(BrokenPipeError):
            fork()
        os.close(one.pidfd)


# --- of pages


@only_here
def test_only_what_is_the_same_is_given_back() -> None:
    """A child changes all pages of a buffer, and all but every third back."""
    buffer = mmap.mmap(-1, 300 * PAGE, mmap.MAP_PRIVATE)
    for at in range(0, len(buffer), PAGE):
        buffer[at : at + 8] = at.to_bytes(8, "big")

    def live(hook: socket.socket) -> NoReturn:
        k.set_death_signal(signal.SIGKILL)
        for at in range(0, len(buffer), PAGE):
            buffer[at + 100] = 1
            buffer[at + 100] = 0 if at // PAGE % 3 else 2
        waiting = select.epoll()
        waiting.register(hook, select.EPOLLIN)
        hook.send(b"changed")
        waiting.poll()
        hook.recv(1)
        right = all(
            buffer[at : at + 8] == at.to_bytes(8, "big") and buffer[at + 100] == (0 if at // PAGE % 3 else 2)
            for at in range(0, len(buffer), PAGE)
        )
        hook.send(b"right" if right else b"wrong")
        signal.pause()
        os._exit(0)

    with nursery(live) as (made, hook, fork):
        file, number = made.begin()
        template = patiently(lambda: Template(made.pid, file, number))
        os.close(file)
        one = fork()
        assert hook.recv(16) == b"changed"
        before = own_kib(one.pid)
        given = patiently(lambda: template.give_back(one.pid, one.pidfd, 1))
        assert given >= 200 and own_kib(one.pid) <= before - 800
        hook.send(b"?")
        assert hook.recv(16) == b"right"
        os.close(one.pidfd)


@only_here
def test_what_a_hostile_one_maps_is_not_looked_at(tmp_path: Path) -> None:
    """More of the file than there is, and files whose names are no text, or look like lines."""
    strange = [
        os.fsencode(tmp_path) + name for name in (b"/\xff", b"/a\r0-fff0000000 rw-p 0 0:1 1 /memfd:boxes (deleted)")
    ]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mremap.restype = ctypes.c_void_p

    def live(hook: socket.socket) -> NoReturn:
        k.set_death_signal(signal.SIGKILL)
        grown = 0
        for line in Path("/proc/self/maps").read_text().splitlines():
            if "rw-p" in line and "/memfd:boxes" in line and not grown:
                start, end = (int(address, 16) for address in line.split()[0].split("-"))
                at = libc.mremap(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_size_t(1 << 28), 0)
                grown = at == start
        kept = []
        for name in strange:
            Path(os.fsdecode(name)).parent.mkdir(exist_ok=True)
            Path(os.fsdecode(name)).write_bytes(b"x")
            with open(name, "rb") as file:
                kept.append(mmap.mmap(file.fileno(), 1, mmap.MAP_PRIVATE))
        waiting = select.epoll()
        waiting.register(hook, select.EPOLLIN)
        hook.send(b"mapped" if grown else b"failed")
        waiting.poll()
        hook.send(b"alive")
        signal.pause()
        os._exit(0)

    with nursery(live) as (made, hook, fork):
        file, number = made.begin()
        template = patiently(lambda: Template(made.pid, file, number))
        size = os.fstat(file).st_size
        os.close(file)
        one = fork()
        hook.settimeout(20)
        assert hook.recv(16) == b"mapped"
        assert 0 < sum(place.size for place in template._mapped(one.pid)) <= size
        patiently(lambda: template.give_back(one.pid, one.pidfd, 1))
        hook.send(b"?")
        assert hook.recv(16) == b"alive"
        os.close(one.pidfd)


@only_here
def test_nobody_inside_stops_it_meanwhile() -> None:
    """What the kernel does not even tell PID 1 it would tell whoever traces it, who must not pass it on."""

    def live(hook: socket.socket) -> NoReturn:
        k.set_death_signal(signal.SIGKILL)
        if os.fork() == 0:
            while True:
                os.kill(1, signal.SIGSTOP)
        waiting = select.epoll()
        waiting.register(hook, select.EPOLLIN)
        hook.send(b"here")
        while True:
            waiting.poll()
            hook.send(hook.recv(1))

    with nursery(live) as (_, hook, fork):
        one = fork()
        assert hook.recv(16) == b"here"
        hook.settimeout(20)
        for _ in range(amount(30, 300)):
            with standing(one.pid, one.pidfd) as stopped:
                stopped.call(GETPID)
            hook.send(b"?")
            assert hook.recv(1) == b"?"
        os.close(one.pidfd)


@pytest.mark.parametrize(
    ("deed", "found"),
    [
        (lambda: signal.pause(), None), (lambda: b"\xff".decode(), None), (lambda: 7, True),
        (lambda: tracing.Stopped(os.getpid()).__enter__(), False),  # not itself
    ],
)  # fmt: skip
def test_one_that_cannot_be_had_to_give_back_keeps_nobody(
    deed: Callable[[], object], found: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hostile(Template):
        def __init__(self) -> None:
            pass

        def give_back(self, pid: int, pidfd: int, least: int) -> int:
            deed()
            return 0

    monkeypatch.setattr("boxwood.engine.steward._AT_MOST", 0.2)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        assert _Round(theirs, Hostile())._tried(_Watched(os.getpid(), -1)) is found


def patiently(attempt: Callable[[], T]) -> T:
    """It may just be on its way to wait."""
    while True:
        try:
            return attempt()
        except tracing.Busy:
            time.sleep(0.001)


@contextmanager
def waiting_process() -> Iterator[tuple[int, int, int]]:
    """A child that waits for events, and says which signals it hears: pid, pidfd, where it says so."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        poll = select.epoll()
        signal.signal(signal.SIGUSR1, lambda *_: os.write(tell, b"1"))
        os.write(tell, b"!")
        while True:
            poll.poll()
    os.close(tell)
    assert os.read(told, 1) == b"!"
    pidfd = os.pidfd_open(pid)
    try:
        yield pid, pidfd, told
    finally:
        with suppress(ProcessLookupError):  # who stopped it has taken note of its end, as its parent
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(told)
        os.close(pidfd)


@contextmanager
def standing(pid: int, pidfd: int) -> Iterator[tracing.Stopped]:
    def stopped() -> tracing.Stopped:
        return there.enter_context(tracing.Stopped(pid, pidfd))

    with ExitStack() as there:
        yield patiently(stopped)


@only_here
def test_a_process_makes_a_call_for_us_and_hears_what_came_meanwhile() -> None:
    with waiting_process() as (pid, pidfd, told):
        for _ in range(20):
            with standing(pid, pidfd) as stopped:
                os.kill(pid, signal.SIGUSR1)
                assert [stopped.call(GETPID) for _ in range(3)] == [pid] * 3
                with pytest.raises(OSError):
                    stopped.call(tracing.MADVISE, 1, PAGE, 4)
            assert os.read(told, 1) == b"1"


@only_here
def test_a_process_may_die_meanwhile() -> None:
    with waiting_process() as (pid, pidfd, _):
        with standing(pid, pidfd) as stopped:
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(ProcessLookupError):
                while True:
                    stopped.call(GETPID)


@only_here
def test_its_parent_hears_of_its_end() -> None:
    """… which the kernel keeps from it as long as somebody else has not taken note."""

    def live(hook: socket.socket) -> NoReturn:
        k.set_death_signal(signal.SIGKILL)
        waiting = select.epoll()
        waiting.register(hook, select.EPOLLIN)
        hook.send(b"here")
        while True:
            waiting.poll()

    with nursery(live) as (made, hook, fork):
        for _ in range(amount(10, 100)):
            one = fork()
            assert hook.recv(4) == b"here"
            with suppress(ProcessLookupError), standing(one.pid, one.pidfd) as stopped:
                os.kill(one.pid, signal.SIGKILL)
                while True:
                    stopped.call(GETPID)
            assert select.select([made], [], [], 10)[0]
            assert [number for number, _ in made.ended()] == [one.number]
            os.close(one.pidfd)


@only_here
def test_another_process_with_its_number_is_left_alone() -> None:
    with waiting_process() as (ended, pidfd, _):
        held = os.dup(pidfd)
    with waiting_process() as (pid, pidfd, told):
        with pytest.raises(ProcessLookupError), standing(pid, held):
            pytest.fail("it stands still for somebody else")
        os.kill(pid, signal.SIGUSR1)
        assert os.read(told, 1) == b"1" and pid != ended
    os.close(held)


@only_here
def test_who_works_is_busy() -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        with pytest.raises(tracing.Busy), tracing.Stopped(pid):
            pytest.fail("it does not wait for events")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
