"""The zygote: a small, single-threaded daemon that forks boxes. It holds no secrets and knows no HTTP.

Started by exec from a clean interpreter (`python -I -m boxwood.engine.zygote`) with an empty environment and no
descriptors but its log, it imports all that an agent needs, freezes its heap, and then forks: the child becomes the
agent without exec, so no interpreter is needed in an image and memory is shared.

It reads only what the server writes: ids, numbers, descriptors. No byte that a box wrote comes here: an agent's link
goes to the server; the hook, over which an agent is handed a new link, is shut for reading.
"""

from __future__ import annotations

import argparse
import array
import gc
import json
import os
import re
import resource
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from boxwood.engine import birth, delegated, idmap, openfiles
from boxwood.engine import kernel as k
from boxwood.engine.api import Limits
from boxwood.engine.cgroup import Cgroups
from boxwood.engine.disk import image
from boxwood.engine.disk.projects import Projects
from boxwood.engine.idmap import IdMap
from boxwood.engine.layers import jail
from boxwood.engine.network.uplink import Uplink
from boxwood.engine.onerange import SharedRanges
from boxwood.engine.overlay import MOST_LAYERS, Places, by_descriptor, prepare_top
from boxwood.engine.peer import Lost, Peer
from boxwood.engine.ranges import RangeMaker
from boxwood.engine.spares import Live, Spares, pidfd_of
from boxwood.engine.uidrange import Ranges
from boxwood.engine.ulid import checked
from boxwood.engine.unmounter import Unmounter

_HOSTNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}\Z")
_LONELY = 5.0  # seconds between looks whether a server can still come
_RETRY = 0.02  # seconds until a busy cgroup is tried again
_PAUSE = 1.0  # seconds between looks at a router that is down


class Refused(Exception):
    """A request that makes no sense: its text is the answer."""


class Zygote:
    """`ids`: it has entered a namespace of these, since it runs without root; None: it is the host's root."""

    def __init__(self, data: Path, images: Path, locks: Path, places: Places | None, ids: IdMap | None = None) -> None:
        directory = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._data = data
        self._layers = os.open(data / "layers", directory)
        self._images = os.open(images, directory)
        self._rootless = ids is not None
        self._projects = Projects(self._layers, ours=not self._rootless)
        self._disks = image.Disks(self._layers)
        self._ranges: RangeMaker = (
            Ranges(locks, self._layers, self._images)
            if ids is None
            else SharedRanges(ids, self._layers, self._images, data / "dev")
        )
        self._uts_namespace = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._uplink = Uplink(data, locks, self._selector, self._ranges.give_back)
        self._boxes: dict[str, Live] = {}
        self._unmounter = Unmounter()
        self._spares = Spares(
            str(data / "mnt"), places, self._ranges, self._uplink, self._take_in, self._remove_cgroup,
            may_return=ids is None,
        )  # fmt: skip
        self._jobs: dict[int, tuple[int, list[int]]] = {}  # pidfd -> pid, projects that are free after it
        self._busy_cgroups: set[str] = set()
        self._cgroups: Cgroups | None = None
        self._peer: Peer | None = None
        self._ending: tuple[Peer | None, int] | None = None  # who asked for the end, and under which number
        self._address: tuple[int, int] | None = None  # of the socket's file
        self._operations: dict[str, Callable[[dict[str, Any], list[int]], dict[str, Any]]] = {
            "configure": self._configure,
            "boot": self._boot,
            "assign": self._assign,
            "change": self._change,
            "link": self._link,
            "kill": self._kill,
            "freeze": self._freeze,
            "thaw": self._thaw,
            "list": self._list,
            "kills": self._kills,
            "job": self._job,
            "look": self._look,
            "network": self._network,
        }

    # --- the loop

    def serve(self, listener: socket.socket) -> None:
        """Until a server says `end` and the last box is gone."""
        self._selector.register(listener, selectors.EVENT_READ, lambda: self._accept(listener))
        found = os.stat(self._data / "zygote.sock")
        self._address = found.st_dev, found.st_ino
        while not (self._ending and not self._boxes and not self._spares and not self._jobs):
            ready = self._selector.select(self._patience())
            for key, _ in ready:
                if self._selector.get_map().get(key.fd) is key:  # not unregistered by an earlier one
                    key.data()
            if not ready:
                self._spare_time()
        self._finish(listener)

    def _patience(self) -> float | None:
        if self._spares.wanted and not self._ending:
            return self._spares.patience
        if self._busy_cgroups:
            return _RETRY
        if self._uplink.is_down and not self._ending:
            return _PAUSE
        return _LONELY if self._peer is None and not self._ending else None

    def _spare_time(self) -> None:
        """Nothing has happened for a moment."""
        if self._peer is None and not self._ending and not self._reachable():
            self._begin_end(None, 0)
            return
        if self._uplink.is_down and not self._ending:
            self._uplink.revive()
        self._busy_cgroups = {b for b in self._busy_cgroups if not self._removed(b)}
        if self._spares.wanted and not self._ending:
            self._spares.make_ahead()

    def _reachable(self) -> bool:
        """Can a server still come? Not when the data directory is gone, or another zygote has taken the place."""
        try:
            found = os.stat(self._data / "zygote.sock")
        except OSError:
            return False
        return self._address == (found.st_dev, found.st_ino)

    def _accept(self, listener: socket.socket) -> None:
        sock, _ = listener.accept()
        uid = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[4:8], sys.byteorder)
        if uid != os.getuid():
            sock.close()
            return
        self._drop_peer()  # one server at a time: the newest
        self._peer = Peer(sock)
        self._selector.register(sock, selectors.EVENT_READ, self._on_request)

    def _drop_peer(self) -> None:
        if peer := self._peer:
            for box_id in peer.frozen:  # whoever froze them is gone
                if self._cgroups is not None and box_id in self._boxes:
                    try:
                        self._cgroups.thaw(self._boxes[box_id].group)
                    except OSError:
                        traceback.print_exc()  # it is dying, and so is its group
            self._selector.unregister(peer.sock)
            peer.sock.close()
            self._peer = None

    def _on_request(self) -> None:
        assert self._peer is not None
        peer = self._peer
        try:
            request, fds, complete = peer.receive()
        except Lost:
            self._drop_peer()
            return
        try:
            if self._ending:
                raise Refused("the zygote is ending")
            if not complete:
                raise Refused("the zygote has no room for another descriptor")
            if request["op"] == "end":
                self._begin_end(peer, request["n"])
                return
            answer = self._operations[request["op"]](request, fds)
        except (Refused, OSError, KeyError, ValueError, RuntimeError) as error:
            answer = {"error": str(error) or type(error).__name__}
        finally:
            for fd in fds:
                os.close(fd)
        self._say({"n": request["n"], **answer})

    def _say(self, message: dict[str, Any]) -> None:
        if self._peer is not None:
            self._peer.put(message)
            self._flush()

    def _flush(self) -> None:
        """Say what is left to say. As long as the server does not take it, nothing it asks is heard."""
        assert self._peer is not None
        try:
            behind = not self._peer.flush()
        except Lost:
            self._drop_peer()
            return
        if behind:
            self._selector.modify(self._peer.sock, selectors.EVENT_WRITE, self._flush)
        else:
            self._selector.modify(self._peer.sock, selectors.EVENT_READ, self._on_request)

    # --- what the server may ask

    def _configure(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """The seccomp program (in a memfd), the name of this instance's cgroups, and what boxes may reach beside the
        internet."""
        seccomp = os.pread(fds[0], 1 << 20, 0)
        instance = request["instance"]
        if self._cgroups is None:
            self._cgroups = (
                delegated.find(checked(instance))
                if self._rootless
                else Cgroups.find(checked(instance), io_weight=int(request.get("io_weight", 0)))
            )
            self._cgroups.sweep()
        allow = [str(entry) for entry in request["allow"]]
        self._spares.configure(seccomp, self._cgroups, wired=self._wants_wire(request))
        self._uplink.configure(self._ranges.chunk, allow, str(request["resolv"]), at_once=self._spares.wired)
        return {"ok": True, "pid": os.getpid()}

    def _network(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Can boxes have one, and if not, why; what is in the way of those that have."""
        if self._rootless:
            return {"active": False, "why": "it takes root to give boxes a wire"}
        if not self._uplink.is_wanted:
            return {"active": True, "why": "its router is started when a VM first wants it"}
        return {"active": self._uplink.up or self._uplink.starting, "why": self._uplink.problem}

    def _wants_wire(self, request: dict[str, Any]) -> bool:
        return bool(request["network"]) and not self._rootless

    def _boot(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        if self._cgroups is None:
            raise Refused("not configured yet")
        box_id, vm, top = checked(request["box"]), request["vm"] and checked(request["vm"]), checked(request["top"])
        layers = tuple((str(place), checked(ident)) for place, ident in request["layers"])
        if box_id in self._boxes or any(live.top == top for live in self._boxes.values()):
            raise Refused("this box or its top lives already")
        if len(layers) > MOST_LAYERS:
            raise Refused(f"{len(layers)} layers: at most {MOST_LAYERS} can be mounted")
        hostname, read_only, limits = _hostname(request), bool(request["read_only"]), Limits(**request["limits"])
        self._spares.wired = self._wants_wire(request)
        if self._spares.wired:
            self._uplink.wait()
        live = self._spares.next(limits.pids)
        wire = (live.wire or self._uplink.wire(live.range)) if self._spares.wired else None
        data = [ident for place, ident in layers if place == "data"]
        disks = self._disks.attach_all(data, top, read_only=read_only)
        try:
            project = 0
            if not any(disk.layer == top for disk in disks):
                project = self._projects.prepare(top, limits)
                prepare_top(self._layers, top)
            plan = {
                "layers": layers, "top": top, "hostname": hostname, "wire": wire and wire.fields(),
                "read_only": read_only, "disk_limit": limits.disk, "project": project,
                "disks": [[d.layer, d.number, d.read_only, d.sealed, d.ours] for d in disks],
            }  # fmt: skip
            self._limit(live, limits)
            self._spares.remove(live)
            live.box, live.vm, live.top, live.hostname = box_id, vm, top, hostname
            live.read_only = read_only
            live.project = project
            live.loop = next((disk.number for disk in disks if disk.layer == top), -1)
            live.wire, live.address = wire, wire.address if wire else live.address
            self._boxes[box_id] = live
            if wire and vm:
                self._uplink.belongs(wire.address, vm)
            _hand_over(live.hook, json.dumps(plan).encode(), fds[0], disks)
        finally:
            for disk in disks:  # only the box has them
                disk.close()
        return {
            "ok": True, "pid": live.pid, "address": wire.address if wire else "", "read_only": read_only,
            "disk": limits.disk,
        }  # fmt: skip

    def _assign(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Give a box that was booted ahead of its VM (with no `vm`) to one that has the same layers, and the same right
        to write. Its top has the name that the VM's is to have already."""
        assert self._cgroups is not None
        live, vm, top, hostname = (
            self._live(request),
            checked(request["vm"]),
            checked(request["top"]),
            _hostname(request),
        )
        if live.vm:
            raise Refused("this box has a VM")
        if any(other.top == top for other in self._boxes.values()):
            raise Refused("the top of this VM lives already")
        limits = Limits(**request["limits"])
        if limits.disk != live.limits.disk:
            raise Refused("this box was booted with another limit of its disk")
        if limits != live.limits:
            self._change_limits(live, limits)
        if hostname != live.hostname:
            self._set_hostname(live, hostname)
        live.vm, live.top = vm, top
        if live.wire is not None:
            self._uplink.belongs(live.wire.address, vm)
        return {"ok": True}

    def _change(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Another name, other limits for a box that has its VM."""
        assert self._cgroups is not None
        live, limits, hostname = self._live(request), Limits(**request["limits"]), _hostname(request)
        if limits != live.limits:
            self._change_limits(live, limits)
        if hostname != live.hostname:
            self._set_hostname(live, hostname)
        return {"ok": True}

    def _limit(self, live: Live, limits: Limits) -> None:
        """Those of a box that has done nothing yet. `live.limits` is what it has, whatever fails."""
        assert self._cgroups is not None
        self._cgroups.limit(live.group, limits, live.limits)
        live.limits = replace(limits, nofile=live.limits.nofile)
        self._bound_files(live, limits)

    def _change_limits(self, live: Live, limits: Limits) -> None:
        """All of them or none."""
        assert self._cgroups is not None
        before = live.limits
        if limits.disk != before.disk:
            self._limit_disk(live, limits.disk)
        try:
            self._cgroups.change(live.group, limits, before)
            live.limits = replace(limits, nofile=before.nofile)
            self._bound_files(live, limits)
        except BaseException:
            self._cgroups.limit(live.group, before, live.limits)
            live.limits = before
            if limits.disk != before.disk:
                self._limit_disk(live, before.disk)
            raise

    def _bound_files(self, live: Live, limits: Limits) -> None:
        assert self._cgroups is not None
        if limits.nofile != live.limits.nofile:
            openfiles.bound(self._cgroups, live.group, live.pid, limits.nofile)
            live.limits = limits

    def _limit_disk(self, live: Live, limit: int) -> None:
        if live.project:
            self._projects.change(live.project, limit)
        elif live.loop >= 0 and limit:
            image.change(self._layers, live.top, live.loop, limit)
        else:
            raise Refused("its disk was made without a limit, or must keep one")

    def _set_hostname(self, live: Live, hostname: str) -> None:
        k.setns(live.pidfd, k.NEWUTS)
        try:
            k.sethostname(hostname)
        finally:
            k.setns(self._uts_namespace, k.NEWUTS)
        live.hostname = hostname

    def _link(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        live = self._live(request)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds[:1]))]
        try:
            live.hook.sendmsg([b"L"], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise Refused("the agent does not take its new link") from None
        return {"ok": True}

    def _kill(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        live = self._live(request)
        if self._cgroups is not None and self._peer is not None and live.box in self._peer.frozen:
            self._cgroups.thaw(live.group)  # v1's freezer holds even SIGKILL
        if live.mounts is None:
            live.mounts = self._unmounter.hold(live.pid)
        _kill(live.pidfd)
        if self._cgroups is not None:
            self._cgroups.kill(live.group)  # PID 1 may be waiting, deaf to signals, for a lock that one of them holds
        return {"ok": True}

    def _freeze(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        assert self._cgroups is not None and self._peer is not None
        live = self._live(request)
        self._peer.frozen.add(live.box)
        self._cgroups.freeze(live.group)
        return {"ok": True}

    def _thaw(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        assert self._cgroups is not None and self._peer is not None
        live = self._live(request)
        self._cgroups.thaw(live.group)
        self._peer.frozen.discard(live.box)
        return {"ok": True}

    def _list(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """A page of what lives: a packet is bounded."""
        after = request.get("after", "")
        names = sorted(name for name in self._boxes if name > after)[:500]
        shown = [
            {
                "box": live.box, "vm": live.vm, "top": live.top, "pid": live.pid,
                "address": live.wire.address if live.wire else "", "read_only": live.read_only,
            }
            for live in (self._boxes[name] for name in names)
        ]  # fmt: skip
        return {"ok": True, "boxes": shown, "more": len(names) == 500}

    def _kills(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """How many processes of a box the kernel has killed for want of memory."""
        assert self._cgroups is not None
        return {"ok": True, "kills": self._cgroups.usage(self._live(request).group).oom_kills}

    def _look(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """What the top of a live box holds, if it lies in a file."""
        live = self._live(request)
        if live.loop < 0:
            raise Refused("the disk of this box has no limit")
        size, empty = image.look(self._layers, live.top, live.loop)
        return {"ok": True, "bytes": size, "empty": empty}

    def _job(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        job = request["job"]
        projects = self._projects.of(map(checked, job["layers"])) if job["kind"] == "remove" else []
        live = {live.top: live.loop for live in self._boxes.values() if live.loop >= 0}
        loops = {**self._disks.known, **live}
        pid = os.fork()
        if pid == 0:
            birth.reset_signals()
            jail.jailed(job, self._layers, self._images, fds[0], loops)
        pidfd = pidfd_of(pid)
        self._jobs[pidfd] = pid, projects
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._on_job_end(pidfd))
        return {"ok": True}

    def _live(self, request: dict[str, Any]) -> Live:
        live = self._boxes.get(request["box"])
        if live is None:
            raise Refused("no such box lives")
        return live

    # --- deaths

    def _take_in(self, live: Live) -> None:
        """It has been made: its end is to be heard."""
        self._selector.register(live.pidfd, selectors.EVENT_READ, lambda: self._on_death(live))

    def _on_death(self, live: Live) -> None:
        _, status = os.waitpid(live.pid, 0)  # PID 1 is reaped when the last process of its namespace is gone
        self._selector.unregister(live.pidfd)
        os.close(live.pidfd)
        live.hook.close()
        if live.address:
            self._uplink.ended(live.range, live.address)
        else:
            self._ranges.give_back(live.range)
        self._remove_cgroup(live.group)
        if not live.box:
            self._spares.remove(live)
            return
        del self._boxes[live.box]
        if self._peer is not None:
            self._peer.frozen.discard(live.box)
        self._say({"event": "died", "box": live.box, "status": status})
        self._unmounter.take(live.mounts, slow=live.loop >= 0)

    def _remove_cgroup(self, group: str) -> None:
        if not self._removed(group):
            self._busy_cgroups.add(group)

    def _removed(self, group: str) -> bool:
        try:
            return self._cgroups is None or self._cgroups.remove(group)
        except OSError:
            traceback.print_exc()
            return False

    def _on_job_end(self, pidfd: int) -> None:
        pid, projects = self._jobs.pop(pidfd)
        os.waitpid(pid, 0)
        self._projects.clear(projects)
        self._selector.unregister(pidfd)
        os.close(pidfd)

    # --- the end

    def _begin_end(self, peer: Peer | None, number: int) -> None:
        self._ending = peer, number
        for pidfd in self._jobs:
            _kill(pidfd)  # what they leave has a name that is no layer's
        for live in (*self._boxes.values(), *self._spares):
            if self._cgroups is not None and peer is not None and live.box in peer.frozen:
                self._cgroups.thaw(live.group)
            _kill(live.pidfd)

    def _finish(self, listener: socket.socket) -> None:
        assert self._ending is not None
        if self._reachable():
            (self._data / "zygote.sock").unlink(missing_ok=True)  # while we listen: then the next one may take the name
            (self._data / "zygote.json").unlink(missing_ok=True)
        self._selector.unregister(listener)
        listener.close()
        if self._cgroups is not None:
            self._cgroups.sweep()
            self._cgroups.close()
        self._unmounter.close()
        self._uplink.close()
        self._say({"n": self._ending[1], "ok": True})
        while self._peer is not None and self._peer.behind and (ready := self._selector.select(_LONELY)):
            for key, _ in ready:
                key.data()


def _hand_over(hook: socket.socket, plan: bytes, link: int, disks: list[image.Attached]) -> None:
    """Tell a prepared process what it is to become, with what only we can open."""
    fds = [link, *(fd for disk in disks for fd in (disk.file, disk.device))]
    if len(fds) >= birth.DESCRIPTORS:
        raise Refused(f"{len(disks)} of its layers lie in files of their own, which are being moved out: try again")
    sysfs = os.open(image.SYSFS, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if disks else -1
    try:
        rights = array.array("i", [*fds, sysfs] if disks else fds)
        hook.sendmsg([plan], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], socket.MSG_NOSIGNAL)
    finally:
        if sysfs >= 0:
            os.close(sysfs)


def _hostname(request: dict[str, Any]) -> str:
    hostname: str = request["hostname"]
    if not _HOSTNAME.match(hostname):
        raise Refused("a hostname has 1 to 63 letters, digits, dots and hyphens")
    return hostname


def _kill(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # its death is about to be read


# --- how the daemon starts


def _listen(data: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    at = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        (data / "zygote.sock").unlink(missing_ok=True)
        listener.bind(f"/proc/self/fd/{at}/zygote.sock")  # a data directory's name may be longer than an address
    finally:
        os.close(at)
    os.chmod(data / "zygote.sock", 0o600)
    listener.listen(8)
    return listener


def _started_at(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as f:
        return int(f.read().rsplit(")", 1)[1].split()[19])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--locks", type=Path, default=Path("/run/boxwood"))
    parser.add_argument("--overlay", choices=("auto", "descriptors", "paths"), default="auto")
    parser.add_argument("--ready", type=int, required=True, help="descriptor to write to when requests are taken")
    parser.add_argument("--rootless", type=IdMap.from_json, help="the ids of boxes, where we are not root")
    options = parser.parse_args()
    birth.close_all_but(options.ready)
    os.umask(0o077)
    os.chdir("/")
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # a terminal's keys are for the server; `end` is how this one ends
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.rootless is not None:
        idmap.enter(options.rootless)
        k.unshare(k.NEWUTS)  # to come back to
    listener = _listen(options.data)
    paths = options.overlay == "paths" or (options.overlay == "auto" and not by_descriptor())
    places = Places(str(options.data / "layers"), str(options.images)) if paths else None
    zygote = Zygote(options.data, options.images, options.locks, places, options.rootless)
    state = {"pid": os.getpid(), "started": _started_at(os.getpid())}
    (options.data / "zygote.json").write_text(json.dumps(state))
    k.prefer_short_turns()
    gc.collect()
    gc.disable()
    gc.freeze()
    os.write(options.ready, b"ready")
    os.close(options.ready)
    del options
    try:
        zygote.serve(listener)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # its boxes die with it: they asked for that


if __name__ == "__main__":
    main()
