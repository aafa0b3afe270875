"""A box that takes all that it can get: meanwhile another VM works and the server answers, and afterwards the run's
record says what became of it (attacks.md, items 10, 11, 15 and 16).

Nothing here is timed: each attack goes on until it is over or is ended, and while it does, others are asked for, over
and over, and must be right.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import count
from typing import Any

import pytest

from amounts import amount
from servers import Server

PIDS, MEMORY_MIB, OUTPUT_BYTES = 200, 192, 1 << 20
DISK_MIB, BEFORE_MIB = amount((16, 11), (40, 1))  # the size, and what is taken before anything is tried
PENDING = 1000  # may wait in a session
pytestmark = pytest.mark.timeout(300)
_numbers = count()

FORK_BOMB = "bomb() { bomb | bomb & }; bomb; sleep 600"
ZOMBIES = "python3 -c 'import os\nwhile True:\n  try:\n    if os.fork() == 0: os._exit(0)\n  except OSError: break\nimport time; time.sleep(600)'"
THREADS = """python3 -c '
import threading
held, there = threading.Event(), 0
try:
    while there < 100000:
        threading.Thread(target=held.wait, daemon=True).start(); there += 1
except RuntimeError: pass
print(there, flush=True)
import os; os._exit(7)
'"""
HOG = "python3 -c 'held = []\nwhile True: held.append(b\"x\" * (1 << 20))'"
MEMFD = "python3 -c 'import os\nwhile True: os.write(os.memfd_create(\"held\"), bytes(1 << 20))'"
SYNCS = "python3 -c 'import os\nwhile True:\n  for n in range(50):\n    f = os.open(f\"/tmp/f{n}\", 65, 0o644); os.write(f, bytes(4096)); os.fsync(f); os.close(f)'"
SHM = "head -c 4G /dev/zero > /dev/shm/full; echo $?; rm -f /dev/shm/full"
# Every signal that can be is ignored, in a grandchild of a session of its own; its parents end, or stay.
STUBBORN = """python3 -c '
import os, signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
for _ in range(2):
    if os.fork():
        if KEEP: time.sleep(600)
        os._exit(0)
    os.setsid()
os.closerange(0, 64)
open("/tmp/stubborn", "w").write(str(os.getpid()))
time.sleep(600)
'"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("exhausted") / "data"
    started = Server(place, pids=PIDS, memory_mib=MEMORY_MIB, output_bytes=OUTPUT_BYTES, network="none").start()
    yield started
    started.down()


@pytest.fixture(scope="module")
def bystander(server: Server) -> str:
    return fork(server)


def fork(server: Server, **sizes: int) -> str:
    status, made = server.request("POST", "/v1/fork", {"source_vm_name": "ubuntu", "resources": sizes})
    assert status == 200, made
    return str(made["vm_id"])


def run(server: Server, vm: str, command: str, **members: Any) -> dict[str, Any]:
    """As it was answered; over, unless it was to go on in the background."""
    status, answer = server.request("POST", f"/v1/vms/{vm}/runs", {"command": command, **members})
    assert status == (202 if members.get("background") else 200), answer
    return dict(answer)


def others_work(server: Server, bystander: str) -> None:
    number = next(_numbers)
    done = run(server, bystander, f"echo $(({number} * 2)); pwd >> /tmp/seen")
    assert (done["state"], done["exit_code"], done["stdout"]) == ("completed", 0, f"{number * 2}\n")
    status, health = server.request("GET", "/v1/health")
    assert (status, health["status"]) == (200, "ok")


def besieged(server: Server, bystander: str, vm: str, command: str, **members: Any) -> dict[str, Any]:
    """The record of a run, when it is over; until then others are asked for, at least twice."""
    run_id = run(server, vm, command, background=True, **members)["run_id"]
    others_work(server, bystander)
    while True:
        others_work(server, bystander)
        status, record = server.request("GET", f"/v1/vms/{vm}/runs/{run_id}?wait=0.05")
        assert status == 200, record
        if record["state"] not in ("pending", "running"):
            return dict(record)


def alive(server: Server, vm: str) -> list[str]:
    """What runs in a VM that can still be used, but for what looks."""
    done = run(server, vm, "for p in /proc/[0-9]*; do read -r c < $p/comm && echo $c; done 2>/dev/null")
    assert done["exit_code"] == 0, done
    return [name for name in done["stdout"].split() if name not in ("agent", "bash", "sh")]


@pytest.mark.parametrize("command", [FORK_BOMB, ZOMBIES], ids=["fork bomb", "zombies"])
def test_processes_without_end(server: Server, bystander: str, command: str) -> None:
    vm = fork(server)
    record = besieged(server, bystander, vm, command, timeout=amount(0.5, 1))
    assert (record["state"], record["exit_code"]) == ("failed", 124), record
    assert "time" in record["fail_reason"]
    assert alive(server, vm) == [], "all that it started is gone"


def test_threads_without_end(server: Server, bystander: str) -> None:
    vm = fork(server)
    record = besieged(server, bystander, vm, THREADS, timeout=60)
    assert record["exit_code"] == 7, record
    assert 10 < int(record["stdout"]) < PIDS, "a thread counts as a process"
    assert alive(server, vm) == []


def test_memory_without_end(server: Server, bystander: str) -> None:
    vm = fork(server)
    run(server, vm, "echo kept > /root/kept; sync")
    record = besieged(server, bystander, vm, HOG, timeout=60)
    assert record["exit_code"] == 137 and "out of memory" in record["fail_reason"], record
    assert run(server, vm, "cat /root/kept")["stdout"] == "kept\n"


def test_memory_that_has_no_address_counts(server: Server, bystander: str) -> None:
    vm = fork(server)
    record = besieged(server, bystander, vm, MEMFD, timeout=60)
    assert record["exit_code"] == 137, record
    assert run(server, vm, "echo alive")["stdout"] == "alive\n"


def test_a_storm_of_syncs(server: Server, bystander: str) -> None:
    vm = fork(server)
    record = besieged(server, bystander, vm, SYNCS, timeout=amount(0.5, 3))
    assert (record["state"], record["exit_code"]) == ("failed", 124), record
    assert alive(server, vm) == []


def test_shared_memory_counts(server: Server, bystander: str) -> None:
    """/dev/shm has a size of its own, or its pages are what the box may have: it never gets 4 GiB."""
    vm = fork(server)
    record = besieged(server, bystander, vm, SHM, timeout=60)
    assert record["exit_code"] != 0 or record["stdout"].strip() not in ("", "0"), record
    assert run(server, vm, "echo alive")["stdout"] == "alive\n"


# What is done over and over, with a number, until it cannot be done.
FILLERS = {
    "bytes": "fd = os.open('/root/full', os.O_CREAT | os.O_APPEND | os.O_WRONLY); os.write(fd, bytes(1 << 16)); os.close(fd)",
    "small files": "os.close(os.open(f'/root/many/{i}', os.O_CREAT))",
    "names": "os.close(os.open(f'/root/many/{i:0250}', os.O_CREAT))",
    "directories": "os.mkdir(f'/root/many/{i}')",
    "links": "os.link('/root/kept', f'/root/many/{i:0250}')",
    "attributes": "os.close(os.open(f'/root/many/{i}', os.O_CREAT)); os.setxattr(f'/root/many/{i}', 'user.a', bytes(3000))",
    "holes that are filled": "fd = os.open('/root/full', os.O_CREAT | os.O_WRONLY); os.pwrite(fd, b'x', i << 16); os.close(fd)",
    "reservations": "fd = os.open(f'/root/many/{i}', os.O_CREAT | os.O_WRONLY); os.posix_fallocate(fd, 0, 1 << 20); os.close(fd)",
}
FILLER = """python3 -c "
import errno, os, sys
os.mkdir('/root/many')
fd = os.open('/root/many/before', os.O_CREAT | os.O_WRONLY); os.posix_fallocate(fd, 0, BEFORE); os.close(fd)
try:
    for i in range(1 << 31):
        WORK
except OSError as error:
    print(errno.errorcode[error.errno])
" """


@pytest.mark.parametrize("filler", FILLERS.values(), ids=FILLERS)
def test_a_disk_without_end(server: Server, bystander: str, filler: str) -> None:
    """However it is filled: it ends at the limit, for the host too, and when something is deleted there is room."""
    vm = fork(server, disk_mib=DISK_MIB)
    run(server, vm, "echo kept > /root/kept; sync")
    before = set(server.data.glob("layers/*/disk.img"))
    record = besieged(
        server, bystander, vm, FILLER.replace("BEFORE", str(BEFORE_MIB << 20)).replace("WORK", filler), timeout=280
    )
    assert record["stdout"] in ("ENOSPC\n", "EMLINK\n"), record  # a file has 65,000 names at most
    taken = sum(path.stat().st_blocks * 512 for path in server.data.glob("layers/*/disk.img") if path in before)
    assert taken < (DISK_MIB + DISK_MIB // 16 + 8 << 20) * len(before)
    done = run(server, vm, "rm -rf /root/many /root/full; cat /root/kept; echo x > /root/x")
    assert (done["exit_code"], done["stdout"]) == (0, "kept\n"), done


def test_disks_without_end_on_the_host_itself(server: Server) -> None:
    """The probe: what a VM without a limit writes is not stopped there."""
    vm = fork(server)
    done = run(server, vm, f"head -c {DISK_MIB + 20}M /dev/zero > /root/full; stat -c %s /root/full; rm /root/full")
    assert done["stdout"] == f"{DISK_MIB + 20 << 20}\n"


def flood(server: Server, bystander: str, size: int) -> None:
    vm = fork(server)
    before = resident(server)
    record = besieged(server, bystander, vm, f"head -c {size} /dev/zero | tr '\\0' x", timeout=3000)
    assert (record["state"], record["exit_code"]) == ("completed", 0), record
    assert len(record["stdout"]) == OUTPUT_BYTES and record["truncated"] == size - OUTPUT_BYTES
    assert resident(server) - before < min(size >> 1, 128 << 20), "none of it stays in the server's memory"
    spooled = sum(file.stat().st_size for file in (server.data / "spool").rglob("*") if file.is_file())
    assert spooled < 4 * OUTPUT_BYTES, "nor on its disk"


def resident(server: Server) -> int:
    with open(f"/proc/{server.pid}/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))


def test_output_without_a_line_end(server: Server, bystander: str) -> None:
    flood(server, bystander, amount(100, 200) << 20)


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_output_of_ten_gigabytes(server: Server, bystander: str) -> None:
    flood(server, bystander, 10 << 30)


def short_runs(server: Server, bystander: str, many: int) -> None:
    vms = [fork(server) for _ in range(4)]

    def worker(at: int) -> int:
        with server.client() as client:
            vm = client.get(vms[at])
            return sum(vm.run(f"(exit $(({number} % 200)))").exit_code == number % 200 for number in range(many // 4))

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(worker, at) for at in range(4)]
        while wait(working, timeout=0.25).not_done:
            others_work(server, bystander)
        assert [one.result() for one in working] == [many // 4] * 4
    assert all(alive(server, vm) == [] for vm in vms)


def test_hundreds_of_short_runs(server: Server, bystander: str) -> None:
    short_runs(server, bystander, amount(120, 300))


@pytest.mark.full
def test_ten_thousand_short_runs(server: Server, bystander: str) -> None:
    short_runs(server, bystander, 10_000)


@pytest.mark.parametrize("keep", ["1", "0"], ids=["its parents stay", "its parents end"])
def test_what_ignores_every_signal_is_killed(server: Server, bystander: str, keep: str) -> None:
    """However it has left its parents, it is still the run, which has not ended before it has; and it ends with it."""
    vm = fork(server)
    run_id = run(server, vm, STUBBORN.replace("KEEP", keep), background=True)["run_id"]
    look = "while ! test -s /tmp/stubborn; do sleep 0.01; done; p=$(cat /tmp/stubborn); kill -HUP $p; kill -INT $p; kill -TERM $p; "
    look += "kill -USR1 $p; kill -RTMIN $p; kill -0 $p && echo there"
    assert run(server, vm, look, session_idx=1)["stdout"] == "there\n", "the probe: it does ignore what it is sent"
    others_work(server, bystander)
    _, record = server.request("GET", f"/v1/vms/{vm}/runs/{run_id}")
    assert record["state"] == "running", record
    assert server.request("DELETE", f"/v1/vms/{vm}/runs/{run_id}") == (200, {"cancelled": True})
    _, record = server.request("GET", f"/v1/vms/{vm}/runs/{run_id}?wait=60")
    assert record["state"] == "cancelled", record
    assert alive(server, vm) == []
    others_work(server, bystander)


def pending_runs(server: Server, bystander: str, sessions: int) -> None:
    """As many as may wait behind one that does not end, in each session: each has its record, one more is refused, and
    when the first is ended they all come to their end."""
    vm = fork(server)

    def full(index: int) -> list[str]:
        where = {"background": True, "session_idx": index}
        there = [run(server, vm, "echo begun; sleep 600", **where)["run_id"]]
        while True:
            body = {"command": f"echo {len(there)}", **where}
            status, answer = server.request("POST", f"/v1/vms/{vm}/runs", body)
            if status != 202:
                assert (status, answer["error"]["code"]) == (409, "resource_busy"), answer
                return there
            there.append(answer["run_id"])

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(full, index) for index in range(sessions)]
        while wait(working, timeout=0.25).not_done:
            others_work(server, bystander)
        queues = [one.result() for one in working]
    assert {len(queue) for queue in queues} <= {PENDING, PENDING + 1}, "the one that runs need not count"
    for first, *queue in queues:
        _, record = server.request("GET", f"/v1/vms/{vm}/runs/{queue[-1]}")
        assert record["state"] == "pending", record
        assert server.request("DELETE", f"/v1/vms/{vm}/runs/{first}") == (200, {"cancelled": True})
    for _, *queue in queues:
        others_work(server, bystander)
        _, record = server.request("GET", f"/v1/vms/{vm}/runs/{queue[-1]}?wait=300")
        said = (record["state"], record["exit_code"], record["stdout"])
        assert said == ("completed", 0, f"{len(queue)}\n"), record


def test_many_runs_wait_for_one(server: Server, bystander: str) -> None:
    pending_runs(server, bystander, 1)


@pytest.mark.full
def test_ten_thousand_runs_wait_for_ten(server: Server, bystander: str) -> None:
    pending_runs(server, bystander, 10)


def test_nothing_of_all_that_is_left(server: Server, bystander: str) -> None:
    """What the bystander did meanwhile is all there, in order, and its box is the one that it had."""
    seen = run(server, bystander, "wc -l < /tmp/seen; sort -u /tmp/seen | wc -l")["stdout"].split()
    assert seen == [str(next(_numbers)), "1"]
