"""From inside a box, nothing of the host is reachable: attacks.md, items 1 to 9.

Each test runs as root in the box. Probes are plain programs that succeed on an unprotected process: where one could
"pass" by failing for another reason, the test checks the reason.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import guard
import syscalls
from boxfixtures import Result, Runner
from boxwood.core.ids import new_id
from boxwood.engine.api import RunSpec, SessionSpec

pytestmark = [pytest.mark.root, pytest.mark.anyio, pytest.mark.lent_engine]

# Calls by number (x86-64), with arguments that do no harm where they are let through: name -> (call, errnos).
EPERM, ENOSYS, EACCES, EFAULT, EINVAL = 1, 38, 13, 14, 22
CALLS = {
    "mount tmpfs": ("165, b'none', b'/mnt', b'tmpfs', 0, 0", {EPERM}),
    "remount /": ("165, 0, b'/', 0, 32, 0", {EPERM}),
    "umount /proc": ("166, b'/proc', 2", {EPERM}),
    "pivot_root": ("155, b'/', b'/'", {EPERM}),
    "fsopen": ("430, b'tmpfs', 0", {EPERM}),
    "open_tree": ("428, -100, b'/', 1", {EPERM}),
    "move_mount": ("429, -100, b'/tmp', -100, b'/mnt', 0", {EPERM}),
    "mount_setattr": ("442, -100, b'/', 0, bytes(32), 32", {EPERM}),
    "open_by_handle_at": ("304, -100, bytes(64), 0", {EPERM}),
    "name_to_handle_at": ("303, -100, b'/', bytes(128), bytes(8), 0", {EPERM}),
    "unshare user": ("272, 0x10000000", {EPERM}),
    "unshare mount": ("272, 0x20000", {EPERM}),
    "unshare net": ("272, 0x40000000", {EPERM}),
    "clone user": ("56, 0x10000011, 0, 0, 0, 0", {EPERM}),
    "clone3": ("435, bytes(88), 88", {ENOSYS}),
    "setns": ("308, 0, 0", {EPERM}),
    "bpf": ("321, 0, bytes(64), 64", {EPERM}),
    "perf_event_open": ("298, bytes(128), 0, -1, -1, 0", {EPERM}),
    "userfaultfd": ("323, 1", {EPERM}),
    "io_uring_setup": ("425, 8, bytes(128)", {EPERM}),
    "kexec_load": ("246, 0, 0, 0, 0", {EPERM}),
    "init_module": ("175, bytes(16), 16, b''", {EPERM}),
    "finit_module": ("313, 0, b'', 0", {EPERM}),
    "keyctl": ("250, 0, -3, 0", {EPERM}),
    "add_key": ("248, b'user', b'x', b'y', 1, -2", {EPERM}),
    "request_key": ("249, b'user', b'x', b'y', -2", {EPERM}),
    "settimeofday": ("164, bytes(16), 0", {EPERM}),
    "clock_settime": ("227, 0, bytes(16)", {EPERM}),
    "swapon": ("167, b'/tmp/x', 0", {EPERM}),
    "quotactl": ("179, 0x80000102, b'/', 0, bytes(64)", {EPERM}),
    "reboot": ("169, 0xfee1dead, 672274793, 0, 0", {EPERM}),
    "syslog": ("103, 3, bytes(64), 64", {EPERM}),
    "acct": ("163, 0", {EPERM}),
    "iopl": ("172, 3", {EPERM}),
    "sethostname": ("170, b'owned', 5", {EPERM}),
    "personality read-implies-exec": ("135, 0x0400000", {EPERM}),
    "fanotify_init": ("300, 0, 0", {EPERM}),
    "lookup_dcookie": ("212, 0, bytes(64), 64", {EPERM, ENOSYS}),
    "x32 getpid": ("0x40000000 + 39,", {EPERM, ENOSYS}),
    "x32 ptrace": ("0x40000000 + 521, 16, 1, 0, 0", {EPERM, ENOSYS}),
    "mknod disk": ("133, b'/tmp/disk', 0o60666, 0x800", {EPERM}),
    "mknod kmsg": ("133, b'/tmp/kmsg', 0o20666, 0x10b", {EPERM}),
    "socket packet": ("41, 17, 3, 768", {EPERM, 97}),
    "socket raw": ("41, 2, 3, 1", {EPERM}),
    "socket vsock": ("41, 40, 1, 0", {EPERM, 97}),
    "socket uevent": ("41, 16, 3, 15", {EPERM}),
    "socket nflog": ("41, 16, 3, 12", {EPERM}),
    "socket alg": ("41, 38, 5, 0", {EPERM, 97}),
    "ptrace 1": ("101, 16, 1, 0, 0", {EPERM}),
    "process_vm_readv 1": ("310, 1, IOV, 1, REMOTE, 1, 0", {EPERM}),
    "pidfd_getfd 1": ("438, SYS(434, 1, 0), 3, 0", {EPERM}),
    "kcmp 1": ("312, 1, 1, 0, 0, 0", {EPERM}),
    "prlimit of 1": ("302, 1, 7, b'\\1' * 16, 0", {EPERM}),
    "prlimit of another": ("302, OTHER, 7, b'\\1' * 16, 0", {EPERM}),
    "process_madvise 1": ("440, SYS(434, 1, 0), IOV, 1, 4, 0", {EPERM}),
}
PRELUDE = f"""
{syscalls.SYS}
buf = ctypes.create_string_buffer(64)
IOV = struct.pack('QQ', ctypes.addressof(buf), 8)
REMOTE = struct.pack('QQ', 0x400000, 8)
OTHER = os.getppid()
"""


async def python(runner: Runner, source: str) -> str:
    await runner.box.write_file("/tmp/probe.py", source.encode())
    result = await runner.run("python3 /tmp/probe.py", timeout=60)
    assert result.code == 0, bytes(result.err).decode()
    return result.text


async def test_forbidden_calls(runner: Runner) -> None:
    """Items 3, 4, 5, 6."""
    lines = [f"r = SYS({args}); print({name!r}, '=', r, ctypes.get_errno())" for name, (args, _) in CALLS.items()]
    answers = dict(line.split(" = ") for line in (await python(runner, PRELUDE + "\n".join(lines))).splitlines())
    let_through = {
        name: answers.get(name)
        for name, (_, errnos) in CALLS.items()
        if not (found := re.fullmatch(r"-1 (\d+)", answers.get(name, ""))) or int(found[1]) not in errnos
    }
    assert not let_through
    assert (await runner.run("hostname; echo alive")).text == "testbox\nalive\n"


async def test_the_probe_of_calls_works() -> None:
    """The same way of calling reaches the kernel where nothing forbids it."""
    source = PRELUDE + "print(SYS(39) == os.getpid(), SYS(272, 0x20000))"
    assert subprocess.run(["python3", "-c", source], capture_output=True, text=True).stdout == "True 0\n"


async def test_the_32_bit_door_is_shut(runner: Runner) -> None:
    """Item 6: int 0x80 reaches the 32-bit table, whose numbers mean other things."""
    source = (
        '#include <stdio.h>\nint main(){long r; __asm__ volatile("int $0x80":"=a"(r):"a"(20):"memory");'
        'printf("%ld\\n", r); return 0;}'
    )
    await runner.box.write_file("/tmp/p.c", source.encode())
    result = await runner.run("gcc -o /tmp/p /tmp/p.c && /tmp/p")
    assert result.code in (139, 159) or int(result.text) in (-1, -38), (result.code, result.text)


async def test_root_inside_is_nobody_outside(runner: Runner) -> None:
    """Item 1."""
    text = (
        await runner.run(
            "cat /proc/self/uid_map; grep -E '^(CapEff|CapBnd|CapInh|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status"
        )
    ).text
    first, outside, count = text.splitlines()[0].split()
    assert first == "0" and int(outside) >= 0x80000000 and count == "65536"
    fields = dict(line.split(":\t") for line in text.splitlines()[1:])
    allowed = sum(1 << bit for bit in (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 29, 31))
    assert int(fields["CapEff"], 16) & ~allowed == 0 and int(fields["CapBnd"], 16) & ~allowed == 0
    assert int(fields["CapAmb"], 16) == int(fields["CapInh"], 16) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


async def test_setuid_gains_nothing(runner: Runner) -> None:
    """Item 1: a setuid-root copy of a program, run by an ordinary user."""
    command = "cp /usr/bin/id /tmp/id && chmod 4755 /tmp/id && su user -s /bin/sh -c /tmp/id"
    assert "euid=0" not in (await runner.run(command)).text


async def test_proc_and_sys_are_masked(runner: Runner) -> None:
    """Item 2: nothing of the host is read, nothing is written."""
    empty = "kcore keys key-users kmsg timer_list kallsyms slabinfo modules vmallocinfo iomem interrupts sched_debug cmdline"
    for name in empty.split():
        read = await runner.run(f"test ! -e /proc/{name} || head -c 64 /proc/{name} | wc -c")
        assert read.text in ("", "0\n"), name
    shown = await runner.run(
        "ls /sys/kernel /sys/firmware /sys/fs /sys/module /sys/block /proc/acpi /proc/scsi /proc/sys/fs 2>/dev/null | grep -v :"
    )
    assert shown.text.split() == []
    for path in (
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger",
        "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/hostname", "/proc/sys/user/max_user_namespaces", "/proc/irq/0/smp_affinity",
        "/sys/devices/system/cpu/cpu0/online", "/proc/sys/kernel/msgmax", "/proc/1/oom_score_adj", "/proc/sys/kernel/ns_last_pid",
    ):  # fmt: skip
        wrote = await runner.run(f"echo 1 > {path}")
        assert wrote.code != 0, path


async def test_the_host_is_not_in_sight(runner: Runner, data: Path, tmp_path: Path) -> None:
    """Items 3 and 9: no path, mount, name or secret of the host."""
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    command = (
        f"cat {secret} {data}/zygote.json /proc/1/root{secret} /proc/self/root{secret}; ls {data} /work /root/.pyenv"
    )
    seen = await runner.run(command + "; cat /etc/shadow; cat /etc/machine-id")
    assert "of the host" not in seen.text
    shadow = Path("/etc/shadow").read_text()
    for line in shadow.splitlines():
        if (hashed := line.split(":")[1]) and len(hashed) > 3:
            assert hashed not in seen.text
    if (machine := Path("/etc/machine-id")).exists() and machine.read_text().strip():
        assert machine.read_text().strip() not in seen.text
    boot_id = (await runner.run("cat /proc/sys/kernel/random/boot_id")).text
    assert len(boot_id) == 37 and boot_id != Path("/proc/sys/kernel/random/boot_id").read_text()
    mounts = (await runner.run("cat /proc/self/mountinfo")).text
    assert str(data) not in mounts and "/dev/vda" not in mounts and str(Path.home()) not in mounts


async def test_chroot_leads_nowhere(runner: Runner) -> None:
    """Item 3: the classic way out of a chroot ends at the box's own root."""
    source = (
        "import os\nos.makedirs('/tmp/jail', exist_ok=True)\nfd = os.open('/', os.O_RDONLY)\nos.chroot('/tmp/jail')\nos.fchdir(fd)\n"
        "for _ in range(64): os.chdir('..')\nos.chroot('.')\nprint(sorted(os.listdir('/')) == sorted(os.listdir(fd)), os.path.exists('/tmp/probe.py'))"
    )
    assert await python(runner, source) == "True True\n"


async def test_devices_are_the_harmless_ones(runner: Runner) -> None:
    """Item 4: block devices are absent, and one that lies in a layer cannot be opened."""
    text = (await runner.run("find /dev -type b -o -type c | sort")).text.split()
    harmless = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/pts/ptmx"}
    assert {d for d in text if not re.fullmatch(r"/dev/pts/\d+", d)} == harmless
    assert (await runner.run("touch /dev/x")).code != 0


async def test_a_device_node_in_a_layer_is_dead(runner: Runner, data: Path) -> None:
    layer = new_id()
    upper = data / "layers" / layer / "upper"
    upper.mkdir(parents=True)
    os.mknod(upper / "null", 0o20666, os.makedev(1, 3))
    os.chmod(upper / "null", 0o666)
    other = Runner(runner.engine, runner.golden)
    await other.boot(layers=(layer,))
    opened = await other.run("ls -l /null; head -c 1 /null")
    assert "1, 3" in opened.text and b"Permission denied" in opened.err


async def test_the_agent_cannot_be_touched(runner: Runner) -> None:
    """Item 5 and 7: not read, not traced, not stopped, not replaced."""
    for name in ("mem", "environ", "maps", "exe", "auxv", "syscall", "stack", "io", "pagemap"):
        assert (await runner.run(f"head -c 1 /proc/1/{name} | grep -c .")).text == "0\n", name
    for name in ("fd/", "root/", "cwd/", "map_files/"):
        assert (await runner.run(f"ls /proc/1/{name}")).text == "", name
    await runner.run(
        "for s in HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STOP TSTP CONT; do kill -$s 1; done"
    )
    assert (await runner.run("echo alive; tr '\\0' ' ' < /proc/1/cmdline")).text.startswith("alive\nagent")
    source = "import os\ntry: open('/proc/1/comm','w').write('x')\nexcept OSError as e: print(e.errno)"
    assert await python(runner, source) in ("13\n", "1\n")


async def test_nothing_is_inherited(runner: Runner) -> None:
    """Item 8: no descriptors, no environment, no terminal of the host's."""
    os.environ["BOXWOOD_TEST_SECRET"] = "of the host"
    listing = (await runner.run("ls -l /proc/self/fd; env; tty; cat /proc/self/environ | tr '\\0' '\\n'")).text
    targets = re.findall(r"\d+ -> (\S+)", listing)
    assert all(re.match(r"(/dev/pts/\d+|pipe:|/run/boxwood/|/proc/\d+/fd|/dev/null)", t) for t in targets), targets
    assert "SECRET" not in listing and "VIRTUAL_ENV" not in listing and "PYTHON" not in listing


async def test_files_that_programs_load_do_not_reach_the_agent(runner: Runner) -> None:
    """Item 7: what is planted for interpreters and loaders is never looked at."""
    plant = (
        "mkdir -p /usr/lib/python3.11 /root/.local; for d in / /root /usr/lib/python3.11 /usr/lib/python3 /usr/lib/python3/dist-packages; do "
        "for f in encodings.py codecs.py json.py os.py hashlib.py stringprep.py; do echo \"open('/tmp/owned','w').write('x')\" > $d/$f 2>/dev/null; done; done; "
        "echo /tmp/evil.so > /etc/ld.so.preload; echo 'touch /tmp/owned' > /root/.bashrc; echo 'touch /tmp/owned' > /etc/profile"
    )
    await runner.run(plant)
    await runner.run("export BASH_ENV=/root/.bashrc ENV=/root/.bashrc PYTHONPATH=/ LD_PRELOAD=/tmp/evil.so")
    await runner.run("rm -f /tmp/owned")
    await runner.box.write_file("/tmp/f", b"x" * (2 << 20))
    await runner.box.manifest("/tmp")
    await runner.run("kill -9 $$")
    listing = await runner.run("echo /tmp/*")
    assert "/tmp/owned" not in listing.text and listing.text.startswith("/tmp/")


async def test_boxes_share_nothing(runner: Runner) -> None:
    """Item 8: no SysV IPC, message queue, abstract socket, process or signal between boxes."""
    other = Runner(runner.engine, runner.golden)
    await other.boot()
    source = (
        "import ctypes, socket, os\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.shmget(0x1234, 4096, 0o1666) >= 0)\n"
        "s = socket.socket(socket.AF_UNIX)\ns.bind('\\0boxwood-probe'); s.listen()\n"
        "socket.socket(socket.AF_UNIX).connect('\\0boxwood-probe'); print('here', flush=True)\nimport time; time.sleep(300)"
    )
    await runner.box.write_file("/tmp/probe.py", source.encode())
    probe = Result()  # it goes on while the other box looks
    await runner.box.start_run(RunSpec(new_id(), runner.session, b"exec python3 /tmp/probe.py"), probe)
    async with asyncio.timeout(60):
        while b"here" not in probe.out and probe.end is None:
            await asyncio.sleep(0.01)
    assert probe.out == b"True\nhere\n" and probe.end is None, bytes(probe.err)
    looks = (
        "import ctypes, socket\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.shmget(0x1234, 4096, 0o666))\n"
        "try: socket.socket(socket.AF_UNIX).connect('\\0boxwood-probe'); print('connected')\nexcept OSError as e: print(e.errno)"
    )
    assert await python(other, looks) == "-1\n111\n"
    assert probe.end is None
    await runner.box.open_session(SessionSpec(free := new_id()))
    runner.session = free  # the other one is busy
    uid = [(await r.run("awk '{print $2}' /proc/self/uid_map")).text for r in (runner, other)]
    assert uid[0] != uid[1]


@pytest.fixture(autouse=True)
async def _host_is_unharmed() -> AsyncIterator[None]:
    before = Path("/proc/sys/kernel/core_pattern").read_text(), os.uname().nodename
    yield
    assert before == (Path("/proc/sys/kernel/core_pattern").read_text(), os.uname().nodename)


async def test_all_processes_of_a_box_have_ids_of_its_own(runner: Runner) -> None:
    """Seen from the host: also the agent, and what was made before there was a VM."""
    result = Result()
    command = b"setpriv --reuid 65534 --regid 65534 --clear-groups sleep 999 & echo on; sleep 999"
    await runner.box.start_run(RunSpec(new_id(), runner.session, command), result)
    while result.text != "on\n":
        await asyncio.sleep(0.005)
    (row,) = await runner.engine._living()
    while len(pids := [row["pid"], *guard.descendants(row["pid"])]) < 4:
        await asyncio.sleep(0.005)
    base = _ids(row["pid"])[0]
    assert base >= 65536
    for pid in pids:
        assert all(base <= ident < base + 65536 for ident in _ids(pid)), (pid, _ids(pid))
        bounding = int(_status(pid, "CapBnd"), 16)
        assert not bounding & (1 << 21), "CAP_SYS_ADMIN"
        assert (_status(pid, "NoNewPrivs"), _status(pid, "Seccomp")) == ("1", "2")


def _ids(pid: int) -> list[int]:
    return [int(word) for name in ("Uid", "Gid") for word in _status(pid, name).split()]


def _status(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{name}:"))
