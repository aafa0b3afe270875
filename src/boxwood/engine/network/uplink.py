"""The zygote's side of the network: starts the router, starts it again, and keeps addresses until they are free."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from boxwood.engine.network.wire import Wire, address_of
from boxwood.engine.ranges import BoxRange

_START_SECONDS = 20.0  # less than a server waits for an answer
_END_SECONDS = 20.0
_PAUSE, _LONGEST_PAUSE = 1.0, 300.0  # seconds until a router that ended is replaced
_PACKET = 1 << 16
_SO_SNDBUFFORCE = 32
_BEHIND = 16 << 20  # bytes of messages that a router may leave unread


class Uplink:
    """`free`: takes a range back whose address nobody knows any more. `porter`: a socket of the one that stayed in the
    host's network, where we have left it (porter.py), and its pid; `never`: why boxes have no network here."""

    def __init__(
        self,
        data: Path,
        locks: Path,
        selector: selectors.BaseSelector,
        free: Callable[[BoxRange], None],
        porter: tuple[socket.socket, int] | None = None,
        never: str = "",
    ) -> None:
        self.never = never
        self._data = data
        self._locks = locks
        self._selector = selector
        self._free = free
        self._porter = porter
        self._number = 0
        self._allow: list[str] = []
        self._resolv_conf = ""
        self._sock: socket.socket | None = None
        self._pid = 0
        self._mtu = 0  # known once the router is ready
        self._started_at = 0.0
        self._died = False
        self.is_wanted = False
        self._is_fresh = True  # no router of ours has worked yet
        self._failures = 0  # in a row
        # With VMs, by addresses that the router has yet to give back.
        self._ending: dict[str, tuple[BoxRange, str]] = {}
        self._tenants: dict[str, str] = {}  # VMs by addresses
        self.problem = "it has not been started"

    # --- the router

    def configure(self, number: int, allow: list[str], resolv_conf: str, *, at_once: bool) -> None:
        """`at_once`: the router is started now, and is ready in a moment; else when a box first wants a wire. One that
        is there takes another list of exceptions."""
        changed, self._number, self._allow = allow != self._allow, number, allow
        self._resolv_conf = resolv_conf
        self.is_wanted = self.is_wanted or at_once
        if self._sock is None:
            if self.is_wanted:
                self._start()
        elif changed:
            self._say({"allow": allow})

    def _start(self) -> None:
        """Whatever fails is no reason for the zygote to die, and all boxes with it."""
        self._started_at = time.monotonic()
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._pid = self._spawn(theirs)
        except OSError as error:
            self.problem = f"its router cannot be started: {error.strerror}"
            self._failures += 1
            return
        self._sock, self._mtu, self.problem = ours, 0, "its router is starting"
        self._selector.register(ours, selectors.EVENT_READ, self._on_message)
        with contextlib.suppress(OSError):  # then a router that is far behind is replaced sooner
            ours.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BEHIND)

    def _spawn(self, sock: socket.socket) -> int:
        command = [
            sys.executable, "-I", "-m", "boxwood.engine.network.router",
            "--data", str(self._data), "--locks", str(self._locks), "--number", str(self._number),
            *(["--fresh"] if self._is_fresh else []),
            "--allow", json.dumps(self._allow), "--resolv", self._resolv_conf, "--zygote", "3",
        ]  # fmt: skip
        hands = [(os.POSIX_SPAWN_DUP2, sock.fileno(), 3)]
        if self._porter is None:
            return os.posix_spawn(sys.executable, command, {}, file_actions=hands)
        with self._introduced() as way:
            high = fcntl.fcntl(way, fcntl.F_DUPFD_CLOEXEC, 10)  # else the first might take its number
            try:
                hands.append((os.POSIX_SPAWN_DUP2, high, 4))
                return os.posix_spawn(sys.executable, [*command, "--porter", "4"], {}, file_actions=hands)
            finally:
                os.close(high)

    def _introduced(self) -> socket.socket:
        """A new router's end of a socket to the porter, who is told of it, and of the network that we are in."""
        assert self._porter is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            here = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                said = json.dumps({"resolv": self._resolv_conf}).encode()
                socket.send_fds(self._porter[0], [said], [theirs.fileno(), here], socket.MSG_NOSIGNAL)
            except OSError as error:
                ours.close()
                raise OSError(error.errno, "the porter has died: `boxwood down`, then `boxwood up`") from None
            finally:
                os.close(here)
        return ours

    def _on_message(self) -> None:
        assert self._sock is not None
        try:
            packet = self._sock.recv(_PACKET, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._lost()
            return
        try:
            self._hear(json.loads(packet))
        except (ValueError, KeyError, TypeError, RecursionError):
            os.kill(self._pid, signal.SIGKILL)  # it is not itself

    def _hear(self, said: dict[str, Any]) -> None:
        if "clean" in said:
            if (found := self._ending.pop(said["clean"], None)) is not None:
                self._free(found[0])
        elif "note" in said and "ready" not in said:
            self.problem = said["note"]
        elif "error" in said:
            self.problem = said["error"]
        elif "ready" in said:
            self._mtu, self.problem = said["mtu"], said["note"]
            self._died = self._is_fresh = False
            self._failures = 0
            for address, vm in self._tenants.items():
                self._say({"vm": vm, "address": address})
            for address, (_, vm) in self._ending.items():
                self._say({"ended": address, "of": vm})

    def _lost(self) -> None:
        assert self._sock is not None
        self._selector.unregister(self._sock)
        self._sock.close()
        self._sock = None
        os.waitpid(self._pid, 0)
        if self._mtu:
            self.problem, self._mtu, self._died = "its router has died, and is started again", 0, True
        else:
            self._failures, self._died = self._failures + 1, False

    def state(self, *, wanted: bool) -> tuple[bool, str]:
        """Can boxes have a network, and if not, why; what is in the way of those that have. `wanted`: now."""
        if self.never:
            return False, self.never
        if wanted:
            self.want()
        if not self.is_wanted:
            return True, "its router is started when a VM first wants it"
        return self.up or self.starting, self.problem

    @property
    def up(self) -> bool:
        return bool(self._mtu)

    @property
    def starting(self) -> bool:
        return self._sock is not None and not self._mtu

    @property
    def is_down(self) -> bool:
        return self._sock is None and self.is_wanted

    def revive(self) -> None:
        """Start another router, if it is time: after one that has worked soon, after failures later and later."""
        if time.monotonic() > self._started_at + min(_PAUSE * 2**self._failures, _LONGEST_PAUSE):
            self._start()

    def want(self) -> None:
        """The router is started if it was not wanted so far, and is ready in a moment."""
        if not self.is_wanted:
            self.is_wanted = True
            self._start()

    def wait(self) -> None:
        """Until the router is ready, or has failed. It takes some 0.3 s, once in a zygote's life and when a router has
        died at its work."""
        if self._sock is None and (self._died or not self.is_wanted):
            self.is_wanted = True
            self._start()
        deadline = time.monotonic() + _START_SECONDS
        while self._sock is not None and not self._mtu:
            if not _readable(self._sock, deadline - time.monotonic()):
                os.kill(self._pid, signal.SIGKILL)
                self.problem = f"its router was not ready within {_START_SECONDS:g} s"
            self._on_message()

    # --- boxes (a router that is not ready yet is told of all of them when it is, and of none twice)

    def wire(self, range_: BoxRange) -> Wire | None:
        """For a box in this range, if there can be one now."""
        return Wire(address_of(range_.number), self._number, self._mtu) if self._mtu else None

    def belongs(self, address: str, vm: str) -> None:
        self._tenants[address] = vm
        if self.up:
            self._say({"vm": vm, "address": address})

    def ended(self, range_: BoxRange, address: str) -> None:
        """The box is no more. Its range comes back when its address is clean."""
        vm = self._tenants.pop(address, "")
        self._ending[address] = range_, vm
        if self.up:
            self._say({"ended": address, "of": vm})

    def _say(self, message: dict[str, Any]) -> None:
        """A router that does not listen is replaced: the next one is told all of it."""
        if self._sock is None:
            return
        try:
            self._sock.send(json.dumps(message).encode(), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except BlockingIOError:
            os.kill(self._pid, signal.SIGKILL)
        except OSError:
            pass  # its end is about to be heard of

    def close(self) -> None:
        """End the router and wait for it: it takes everything down. One that has died left it all: another one does."""
        if self.is_down and self._died:
            self._start()
        if (sock := self._sock) is not None:
            sock.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + _END_SECONDS
            while self._sock is sock:
                if not _readable(sock, deadline - time.monotonic()):
                    os.kill(self._pid, signal.SIGKILL)  # what it leaves, the next one takes down
                    deadline += _END_SECONDS
                self._on_message()
        for range_, _ in self._ending.values():
            self._free(range_)
        self._ending.clear()
        self._mtu, self.problem = 0, "it has ended"
        if self._porter is not None:
            sock, pid = self._porter
            sock.close()
            os.kill(pid, signal.SIGKILL)  # and with it pasta: it has nothing to lose
            os.waitpid(pid, 0)


def _readable(sock: socket.socket, seconds: float) -> bool:
    """Within this time. Not select.select: a zygote may have more descriptors than that takes."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1e3))
