"""What of the host has to be changed so that its packets reach the world: forwarding, and another firewall's `no`.

Both are the host's and not ours, so they are changed only where they stand in the way, once for all routers of the
host, and put back by the last one that ends. A file of the host says what there is to put back; after a crash the next
router finds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
from pathlib import Path

from boxwood.engine import landlock
from boxwood.engine.network.table import listed

_SWITCH = Path("/proc/sys/net/ipv4/ip_forward")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_IPTABLES_LOCK = Path("/run/xtables.lock")
_IPTABLES_SECONDS = 10
_RULES = (
    ("-i", "bw+", "-j", "ACCEPT"),
    ("-o", "bw+", "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"),
)


class Forwarding:
    """`state`: a file that all routers of the host share. Turned on when made; PermissionError, OSError."""

    def __init__(self, state: Path) -> None:
        self._fd = os.open(state, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        while not self._share():
            pass  # the last one was just putting it back

    def _share(self) -> bool:
        """Hold the file, with forwarding on; all routers do, as long as they live."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _SWITCH.read_text().strip() == "0":
                names = " ".join(
                    name for _, name in socket.if_nameindex() if name != "lo" and not name.startswith("bw")
                )
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, f"on {names}\n".encode(), 0)  # before it is: else a crash would leave it so
                _SWITCH.write_text("1")
        except BlockingIOError:
            pass  # others are there
        fcntl.flock(self._fd, fcntl.LOCK_SH)
        return _SWITCH.read_text().strip() != "0"

    @property
    def guarded(self) -> list[str]:
        """The interfaces that there were when we turned it on: nothing that came over them was forwarded before, and
        so nothing is. None if it was on already."""
        word, *names = os.pread(self._fd, 1 << 16, 0).decode().split() or [""]
        return names if word == "on" else []

    @property
    def _is_ours(self) -> bool:
        """Did we turn it on, and nobody rely on it since? A container engine that came later finds it on, and does not
        say that it needs it: but it has made interfaces."""
        if not os.pread(self._fd, 8, 0).startswith(b"on"):
            return False
        known = {"lo", *self.guarded}
        return all(name in known or name.startswith("bw") for _, name in socket.if_nameindex())

    def close(self) -> bool:
        """Put it back, if nobody else needs it. True: this was the last router of the host."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            if self._is_ours:
                _SWITCH.write_text("0")
                os.ftruncate(self._fd, 0)
            return True
        finally:
            os.close(self._fd)


def written() -> dict[Path, int]:
    """What is written to here after the start, for landlock.confine."""
    if shutil.which("iptables", path=_PATH):  # which makes it too, but will not be able to
        with contextlib.suppress(PermissionError):  # not the host's root: nor are its rules ours to change
            _IPTABLES_LOCK.touch(0o600)
    return dict.fromkeys((_SWITCH, _IPTABLES_LOCK, Path(os.devnull)), landlock.WRITE)


def uplinks() -> list[str]:
    """The interfaces that default routes lead over."""
    lines = Path("/proc/net/route").read_text().splitlines()[1:]
    found = (fields for line in lines if (fields := line.split())[1] == "00000000" == fields[7])
    return sorted({fields[0] for fields in found if fields[0] != "*"})  # which stands for "unreachable"


def mtu_of(interfaces: list[str]) -> int:
    """The smallest of theirs, at most Ethernet's."""
    found = [1500]
    for name in interfaces:
        with contextlib.suppress(OSError):  # it has gone
            found.append(int(Path(f"/sys/class/net/{name}/mtu").read_text()))
    return max(1280, min(found))


def pass_firewall() -> str:
    """Where iptables refuses what it does not know (Docker's habit), let the packets of boxes pass it: our own table
    has judged them. What is in the way otherwise, and cannot be helped from here; else empty."""
    chain = _refusing_chain()
    if chain:
        for rule in _RULES:
            if not _iptables("-C", chain, *rule):
                _iptables("-I", chain, *rule)
    return _stranger()


def unpass_firewall() -> None:
    for chain in ("DOCKER-USER", "FORWARD"):
        for rule in _RULES:
            while _iptables("-C", chain, *rule):
                if not _iptables("-D", chain, *rule):
                    break


def _refusing_chain() -> str:
    """The chain of iptables to put rules in, if it refuses by default."""
    said = _said("-S", "FORWARD")
    if "-P FORWARD DROP" not in said:
        return ""
    return "DOCKER-USER" if "-j DOCKER-USER" in said else "FORWARD"


def _stranger() -> str:
    """A chain of nftables, but not iptables', that drops what is forwarded."""
    for item in listed("chains"):
        chain = item.get("chain", {})
        foreign = chain.get("table") != "filter" and not str(chain.get("table")).startswith("boxwood_")
        if chain.get("hook") == "forward" and foreign and chain.get("policy") == "drop":
            return f"another firewall drops what is forwarded: chain {chain['name']} of table {chain['table']}"
        if chain.get("table") == "firewalld" and chain.get("hook") == "forward":
            return "firewalld refuses what is forwarded: `firewall-cmd --zone=trusted --add-interface=bw+`"
    return ""


def _iptables(*arguments: str) -> bool:
    done = _iptables_run(*arguments)
    return done is not None and done.returncode == 0


def _said(*arguments: str) -> str:
    done = _iptables_run(*arguments)
    return done.stdout if done is not None and done.returncode == 0 else ""


def _iptables_run(*arguments: str) -> subprocess.CompletedProcess[str] | None:
    """None: there is no iptables, so nobody can have set anything with it."""
    try:
        return subprocess.run(
            ["iptables", "-w", "5", *arguments], capture_output=True, text=True, timeout=_IPTABLES_SECONDS,
            env={"PATH": _PATH, "LC_ALL": "C"},
        )  # fmt: skip
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
