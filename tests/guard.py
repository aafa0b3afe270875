"""Nothing may be left behind: the test session runs in a child of a process that adopts every orphan, and looks.

The guard is the subreaper of the session, so a server, zygote or box that outlives its test becomes its child however
it daemonised. The session's temporary directory is its own, so mounts and loop devices are told by their paths.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
GRACE_SECONDS = 5.0  # for processes and groups that are on their way out when the session ends
ENVIRONMENT = "BOXWOOD_TEST_GUARDED"


def enter() -> int | None:
    """Fork. In the child, which goes on as the session: None. In the guard, when the session has ended: its exit code,
    or 1 if it passed and left something behind."""
    temporary = Path(tempfile.mkdtemp(prefix="bw-"))
    temporary.chmod(0o711)  # tests that run as another user have a directory in it
    before = {*groups(), *named_namespaces(), *networks()}
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, _end_once)
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        os.environ[ENVIRONMENT] = "1"
        os.environ["TMPDIR"] = str(temporary)
        tempfile.tempdir = None
        return None
    code = _reap_until(child)
    if code > 128:
        print(f"\nthe test session was killed by signal {code - 128}", file=sys.stderr)
    left = _leftovers(temporary, before)
    _remove(temporary)
    if left:
        print(f"\nLEFT BEHIND by this session ({len(left)}):", *left[:50], sep="\n  ", file=sys.stderr)
        return code or 1
    return code


def _reap_until(child: int) -> int:
    """Wait for the session, reaping orphans meanwhile. Interrupts are the session's to handle; an end is one too."""
    kept = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    for number in (signal.SIGTERM, signal.SIGHUP):
        kept[number] = signal.signal(number, lambda *_: os.kill(child, signal.SIGTERM))
    try:
        while True:
            pid, status = os.waitpid(-1, 0)
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _end_once(*_: object) -> None:
    """An end that runs the fixtures' ends too, which nothing then interrupts."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


def _leftovers(temporary: Path, before: set[str]) -> list[str]:
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := _look(temporary, before)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in list(descendants(os.getpid())):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return left


def _look(temporary: Path, before: set[str]) -> list[str]:
    _reap_dead()
    left = [f"process {pid}: {name_of(pid)}{whereabouts(pid)}" for pid in descendants(os.getpid())]
    left += [f"mount {place}" for place in mounts(temporary)]
    left += [f"loop device {device}" for device in loops(temporary)]
    return left + [found for found in (*groups(), *named_namespaces(), *networks()) if found not in before]


def _reap_dead() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def _remove(temporary: Path) -> None:
    if os.environ.get("BOXWOOD_KEEP_TMP"):
        print(f"kept: {temporary}", file=sys.stderr)
    else:
        # shutil.rmtree recurses: a tree that is deeper than Python's stack ends it.
        subprocess.run(["rm", "-rf", "--one-file-system", "--", str(temporary)], check=False)


# --- what there is


def descendants(pid: int) -> Iterator[int]:
    """The children of a process, theirs, and so on."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat(int(entry.name))) is not None:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            waiting.append(child)
            yield child


def stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; None: there is no such process any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def alive(pid: int) -> bool:
    fields = stat(pid)
    return fields is not None and fields[0] not in "ZX"


def name_of(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b" ".join(words).decode(errors="replace").strip() or Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"


def whereabouts(pid: int) -> str:
    """How a process stands, whose child it is, and where in the kernel: what tells why it is still there."""
    try:
        state, parent, *_ = stat(pid) or ("gone", "0")
        comm, stack = (Path(f"/proc/{pid}/{name}").read_text() for name in ("comm", "stack"))
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return ""
    frames = " < ".join(line.split()[1].partition("+")[0] for line in stack.splitlines()[:5])
    return f" ({comm.strip()}, {state}, of {parent}, {threads} threads, children {children.split()}, in {frames})"


def mounts(below: Path) -> list[str]:
    places = (line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines())
    return [place for place in places if place.startswith(f"{below}/")]


def loops(below: Path) -> list[str]:
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if (file := backing.read_text().strip()).startswith(f"{below}/"):
                found.append(f"{backing.parent.parent.name}, of {file}")
        except OSError:
            continue  # detached meanwhile
    return found


def groups() -> list[str]:
    """The cgroups of instances that no zygote runs any more, of whatever session: others may be running beside us."""
    from boxwood.engine.daemon import instance

    owned = {f"boxwood-{instance(data)}" for data in _data_directories()}
    tops = {*Path("/sys/fs/cgroup").glob("boxwood-*"), *Path("/sys/fs/cgroup").glob("*/boxwood-*")}
    return sorted(f"cgroup {top}" for top in tops if top.name not in owned)


def _data_directories() -> Iterator[Path]:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode(errors="replace").split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "boxwood.engine.zygote" in words and "--data" in words:
            yield Path(words[words.index("--data") + 1])


def named_namespaces() -> list[str]:
    """Without those of tests that run: of another session's, when ours have ended."""
    directory = Path("/run/netns")
    names = sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else []
    makers = {name: re.fullmatch(r"bwtest(\d+)-\d+", name) for name in names}
    return [f"network namespace {name}" for name, maker in makers.items() if maker is None or not alive(int(maker[1]))]


def networks() -> list[str]:
    """What routers and boxes put into the host's network, unless somebody else's zygote may need it."""
    return [] if any(_data_directories()) else in_network()


def of_router(number: int) -> list[str]:
    """Of these what one router and its boxes have put there."""
    from boxwood.engine.network.wire import address_of
    from boxwood.engine.uidrange import CHUNK

    addresses = [address_of(uids) for uids in range(number * CHUNK, (number + 1) * CHUNK)]
    interfaces = {f"interface bw{socket.inet_aton(address)[2:].hex()}" for address in addresses}
    sources = {f"src={address}" for address in addresses}
    return [
        found
        for found in in_network()
        if found[:16] in interfaces
        or found in (f"interface bwdns{number}", f"table inet boxwood_{number}")
        or _opener(found) in sources  # what a test has opened to a box is the host's own, and goes in its time
    ]


def _opener(found: str) -> str:
    """Who has opened a connection: what comes back is told behind it."""
    return next((word for word in found.split() if word.startswith("src=")), "")


def in_network() -> list[str]:
    found = [f"interface {name}" for _, name in socket.if_nameindex() if name.startswith("bw")]
    if shutil.which("nft", path="/usr/sbin:/usr/bin"):
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
        found += [line for line in tables.splitlines() if " boxwood_" in line]
    connections = Path("/proc/net/nf_conntrack")
    if connections.exists():
        found += [f"connection {line}" for line in connections.read_text().splitlines() if "src=198.18." in line]
    if Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() != "0":
        found.append("forwarding")
    return found
