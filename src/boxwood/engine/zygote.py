"""The zygote: a small, single-threaded daemon that makes boxes. It holds no secrets and knows no HTTP.

`python -I -m boxwood.engine.zygote` starts it (starting.py). It imports all that an agent needs, and then forks the
nursery, which forks for it: a child becomes the agent without exec, so no interpreter is needed in an image and memory
is shared.

It reads only what the server writes: ids, numbers, descriptors. No byte that a box wrote comes here: an agent's link
goes to the server; the hook, over which an agent is handed a new link, is shut for reading.
"""

from __future__ import annotations

import os
import selectors
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from boxwood.engine import sockets
from boxwood.engine.api import Limits
from boxwood.engine.bounds import Bounds
from boxwood.engine.cgroups import delegated, finding
from boxwood.engine.cgroups.cgroups import Cgroups
from boxwood.engine.cgroups.removals import Removals
from boxwood.engine.children import kill
from boxwood.engine.disk import image
from boxwood.engine.disk.projects import Projects
from boxwood.engine.dismissed import QUIET
from boxwood.engine.ends import Ends
from boxwood.engine.idmap import IdMap
from boxwood.engine.jobs import Jobs
from boxwood.engine.listener import Listener
from boxwood.engine.network.uplink import Uplink
from boxwood.engine.nursery import Nursery
from boxwood.engine.onerange import SharedRanges
from boxwood.engine.order import Order, hostname
from boxwood.engine.overlay import Places, prepare_top
from boxwood.engine.peer import Conversation, Peer, Refused
from boxwood.engine.ranges import RangeMaker
from boxwood.engine.spares import Live, Spares
from boxwood.engine.starting import start
from boxwood.engine.steward import Steward
from boxwood.engine.uidrange import Ranges
from boxwood.engine.ulid import checked
from boxwood.engine.unmounter import Unmounter
from boxwood.engine.volumes.attachments import Attachments, Inside

_LONELY = 5.0  # seconds between looks whether a server can still come
_RETRY = 0.02  # seconds until a busy cgroup is tried again
_PAUSE = 1.0  # seconds between looks at a router that is down


class Zygote:
    """`ids`: it has entered a namespace of these, since it runs without root; None: it is the host's root. `porter`:
    of the network that it has left then; else `no_network` says why boxes have none."""

    def __init__(
        self, nursery: Nursery, listener: Listener, data: Path, images: Path, locks: Path, places: Places | None,
        ids: IdMap | None, porter: tuple[socket.socket, int] | None = None, no_network: str = "",
    ) -> None:  # fmt: skip
        directory = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        self._nursery = nursery
        self._listener = listener
        self._layers = os.open(data / "layers", directory)
        self._images = os.open(images, directory)
        self._rootless = ids is not None
        self._projects = Projects(self._layers, ours=not self._rootless)
        self._disks = image.Disks(self._layers)
        self._bounds = Bounds(self._layers, self._projects)
        self._ranges: RangeMaker = (
            Ranges(locks, self._layers, self._images)
            if ids is None
            else SharedRanges(ids, self._layers, self._images, data / "dev")
        )
        self._uts_namespace = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        self._selector = selectors.DefaultSelector()
        self._uplink = Uplink(data, locks, self._selector, self._ranges.give_back, porter, no_network)
        self._alive: dict[int, Live] = {}  # by their numbers: boxes, and what is prepared to become one
        self._boxes: dict[str, Live] = {}
        self._unmounter = Unmounter()
        self._removals = Removals()
        self._ends = Ends(self._boxes, self._unmounter)
        self._spares = Spares(
            nursery, str(data / "mnt"), places, self._ranges, self._uplink, self._take_in, self._removals.remove,
            may_look=ids is None,
        )  # fmt: skip
        self._volumes = Attachments(
            data, self._layers, self._selector, lambda fd, slow: self._unmounter.take(fd, slow=slow),
            rootless=self._rootless,
        )  # fmt: skip
        self._jobs = Jobs(self._selector, self._images)
        self._steward: Steward | None = None
        self._cgroups: Cgroups | None = None
        self._server = Conversation(self._selector, self._answered, self._left)
        self._ending: tuple[Peer | None, int] | None = None  # who asked for the end, and under which number
        self._operations: dict[str, Callable[[dict[str, Any], list[int]], dict[str, Any] | None]] = {
            "configure": self._configure,
            "boot": self._boot,
            "assign": self._assign,
            "change": self._change,
            "link": self._link,
            "kill": self._kill,
            "dismiss": self._dismiss,
            "freeze": self._freeze,
            "thaw": self._thaw,
            "list": self._list,
            "kills": self._kills,
            "job": self._job,
            "look": self._look,
            "network": self._network,
            "attach": self._attach,
            "detach": self._attach,
            "volume": lambda request, fds: self._volumes.make(request),
            "sockets": self._sockets,
            "held": lambda request, fds: {"ok": True, "volumes": self._volumes.held},
        }

    # --- the loop

    def serve(self) -> None:
        """Until a server says `end` and the last box is gone."""
        if not self._rootless:  # which may look at no agent's memory
            self._steward = Steward(self._nursery)
            self._selector.register(self._steward, selectors.EVENT_READ, self._on_settled)
        self._selector.register(self._listener.sock, selectors.EVENT_READ, self._accept)
        self._selector.register(self._nursery, selectors.EVENT_READ, self._on_deaths)
        while not (self._ending and not self._boxes and not self._spares and not self._jobs):
            ready = self._selector.select(self._patience())
            for key, _ in ready:
                if self._selector.get_map().get(key.fd) is key:  # not unregistered by an earlier one
                    key.data()
            if not ready:
                self._spare_time()
            self._ends.dismissed.end_overdue()
        self._finish()

    def _patience(self) -> float | None:
        if self._wants_spare and not self._ending:
            return min(self._spares.patience, QUIET) if self._ends.dismissed else self._spares.patience
        if self._ends.dismissed:
            return QUIET
        if self._removals:
            return _RETRY
        if self._uplink.is_down and not self._ending:
            return _PAUSE
        return _LONELY if self._server.peer is None and not self._ending else None

    @property
    def _wants_spare(self) -> bool:
        return self._spares.wanted and (self._steward is None or self._steward.is_settled)

    def _spare_time(self) -> None:
        """Nothing has happened for a moment."""
        if self._server.peer is None and not self._ending and not self._listener.is_reachable():
            self._begin_end(None, 0)
            return
        if self._uplink.is_down and not self._ending:
            self._uplink.revive()
        self._removals.try_again()
        if self._wants_spare and not self._ending:
            self._spares.make_ahead()
        else:
            self._ends.dismissed.end_one()

    def _accept(self) -> None:
        if (sock := self._listener.accept()) is not None:
            self._server.begin(sock)

    def _answered(self, request: dict[str, Any], fds: list[int], complete: bool) -> dict[str, Any] | None:
        """What a request comes to; None: that is said later. Whatever is wrong with it, a server of another version
        may have sent it, and that costs no box."""
        try:
            if self._ending:
                raise Refused("the zygote is ending")
            if not complete:
                raise Refused("the zygote has no room for another descriptor")
            if request["op"] == "end":
                self._begin_end(self._server.peer, request["n"])
                return None
            return self._operations[request["op"]](request, fds)
        except (Refused, OSError, KeyError, ValueError, RuntimeError) as error:
            return {"error": str(error) or type(error).__name__}
        except Exception as error:
            traceback.print_exc()
            return {"error": f"it makes no sense here: {type(error).__name__}: {error}"[:2000]}

    def _left(self) -> None:
        """A server is gone: nobody reads what jobs answer; the next server clears what they leave."""
        self._ends.abandoned()
        self._jobs.kill()

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
                else finding.find(checked(instance), io_weight=int(request.get("io_weight", 0)))
            )
            self._cgroups.sweep()
            self._cgroups.clear_orphans()
            self._removals.cgroups = self._ends.cgroups = self._cgroups
        allow = [str(entry) for entry in request["allow"]]
        self._spares.configure(seccomp, self._cgroups, wired=self._wants_wire(request))
        self._uplink.configure(self._ranges.chunk, allow, str(request["resolv"]), at_once=self._spares.wired)
        return {"ok": True, "pid": os.getpid()}

    def _network(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """`wanted`: by somebody else than a box."""
        active, why = self._uplink.state(wanted=bool(request.get("wanted")))
        return {"active": active, "why": why}

    def _wants_wire(self, request: dict[str, Any]) -> bool:
        return bool(request["network"]) and not self._uplink.never

    def _boot(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        if self._cgroups is None:
            raise Refused("not configured yet")
        order = Order.of(request)
        if order.box in self._boxes or any(live.top == order.top for live in self._boxes.values()):
            raise Refused("this box or its top lives already")
        self._spares.wired = self._wants_wire(request)
        if self._spares.wired:
            self._uplink.wait()
        live = self._spares.next(order.limits.pids)
        wire = (live.wire or self._uplink.wire(live.range)) if self._spares.wired else None
        disks = self._disks.attach_all(order.in_files, order.top, read_only=order.read_only)
        try:
            project = 0
            if not any(disk.layer == order.top for disk in disks):
                project = self._projects.prepare(order.top, order.limits)
                prepare_top(self._layers, order.top)
            self._bounds.set(self._cgroups, live, order.limits)
            self._spares.remove(live)
            order.fill(live)
            live.project = project
            live.loop = next((disk.number for disk in disks if disk.layer == order.top), -1)
            live.wire, live.address = wire, wire.address if wire else live.address
            self._boxes[order.box] = live
            if wire and order.vm:
                self._uplink.belongs(wire.address, order.vm)
            if order.vm:
                self._look_after(live)
            with suppress(ConnectionError):  # it has been killed: its end is told of as every box's is
                live.become(order.plan(wire, disks, project), fds[0], disks)
        finally:
            for disk in disks:  # only the box has them
                disk.close()
        return {
            "ok": True, "pid": live.pid, "address": wire.address if wire else "", "read_only": order.read_only,
            "disk": order.limits.disk, "durable": order.durable,
        }  # fmt: skip

    def _assign(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Give a box that was booted ahead of its VM (with no `vm`) to one that has the same layers, and the same right
        to write. Its top has the name that the VM's is to have already."""
        assert self._cgroups is not None
        live, vm, top, name = self._live(request), checked(request["vm"]), checked(request["top"]), hostname(request)
        if live.vm:
            raise Refused("this box has a VM")
        if any(other.top == top for other in self._boxes.values()):
            raise Refused("the top of this VM lives already")
        limits = Limits(**request["limits"])
        if limits.disk != live.limits.disk:
            raise Refused("this box was booted with another limit of its disk")
        if limits != live.limits:
            self._bounds.change(self._cgroups, live, limits)
        if name != live.hostname:
            live.rename(name, self._uts_namespace)
        live.vm, live.top = vm, top
        self._look_after(live)
        if live.wire is not None:
            self._uplink.belongs(live.wire.address, vm)
        return {"ok": True}

    def _look_after(self, live: Live) -> None:
        """From now on somebody uses it."""
        if self._steward is not None:
            self._steward.watch(live.pid, live.pidfd)

    def _change(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Another name, other limits for a box that has its VM."""
        assert self._cgroups is not None
        live, limits, name = self._live(request), Limits(**request["limits"]), hostname(request)
        if limits != live.limits:
            self._bounds.change(self._cgroups, live, limits)
        if name != live.hostname:
            live.rename(name, self._uts_namespace)
        return {"ok": True}

    def _link(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self._live(request).take_link(fds[0])
        return {"ok": True}

    def _kill(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self._ends.end(self._live(request))
        return {"ok": True}

    def _dismiss(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Nobody wants the box any more: let nothing run in it, and kill it when there is time. Not one that could run
        on meanwhile, or that has mounted what somebody may wait for."""
        live = self._live(request)
        if live.loop >= 0 or live.durable or self._volumes.of(live.box) or not self._ends.dismiss(live):
            return {"ok": True}
        return {"ok": True, "later": True}

    def _freeze(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self._ends.freeze(self._live(request))
        return {"ok": True}

    def _thaw(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        self._ends.thaw(self._live(request))
        return {"ok": True}

    def _list(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """A page of what lives: a packet is bounded."""
        after = request.get("after", "")
        names = sorted(name for name in self._boxes if name > after and name not in self._ends.dismissed)[:500]
        shown = [
            {
                "box": live.box, "vm": live.vm, "top": live.top, "pid": live.pid,
                "address": live.wire.address if live.wire else "", "read_only": live.read_only,
                "mounts": self._volumes.of(live.box),
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

    def _attach(self, request: dict[str, Any], fds: list[int]) -> None:
        """Mount a volume in a live box, or take it away; answered when that is done."""
        live, peer, number = self._live(request), self._server.peer, request["n"]

        def answer(said: dict[str, Any]) -> None:
            if self._server.peer is peer:  # who asked is still there
                self._server.say({"n": number, **said})

        work = self._volumes.attach if request["op"] == "attach" else self._volumes.detach
        work(Inside(live.box, live.entry(), live.range), request, answer)

    def _job(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """On layers, or with `volumes` on volumes, which lie in directories as layers do."""
        job, volumes = request["job"], bool(request.get("volumes"))
        shelf, place = (self._volumes.projects, self._volumes.fd) if volumes else (self._projects, self._layers)
        projects = shelf.of(map(checked, job["layers"])) if job["kind"] == "remove" else []
        live = {live.top: live.loop for live in self._boxes.values() if live.loop >= 0}
        loops = self._volumes.loops if volumes else {**self._disks.known, **live}
        self._jobs.begin(job, place, fds, loops, lambda: self._projects.clear(projects))
        return {"ok": True}

    def _sockets(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """Make sockets in the network of a box, for the server to reach what listens in there: they come over the one
        that it sends."""
        entry = self._live(request).network_entry()
        counts = [int(count) for count in request["counts"]]
        self._jobs.start(lambda: sockets.hand_out(entry, fds[0], counts))
        return {"ok": True}

    def _live(self, request: dict[str, Any]) -> Live:
        live = self._boxes.get(request["box"])
        if live is None:
            raise Refused("no such box lives")
        return live

    # --- deaths and births

    def _on_settled(self) -> None:
        assert self._steward is not None
        self._selector.unregister(self._steward)
        self._steward.settle()

    def _take_in(self, live: Live) -> None:
        """It has been made: its end is to be heard."""
        self._alive[live.number] = live

    def _on_deaths(self) -> None:
        for number, status in self._nursery.ended():
            if (live := self._alive.pop(number, None)) is not None:  # it was taken in
                self._on_death(live, status)

    def _on_death(self, live: Live, status: int) -> None:
        os.close(live.pidfd)
        live.hook.close()
        if live.door is not None:
            live.entry()  # what is in there is let go of where it may take its time
            live.door.close()
        if live.network is not None:
            os.close(live.network)
        if live.address:
            self._uplink.ended(live.range, live.address)
        else:
            self._ranges.give_back(live.range)
        self._removals.remove(live.group)
        if not live.box:
            self._spares.remove(live)
            self._unmounter.take(live.mounts, slow=False)
            return
        del self._boxes[live.box]
        self._ends.gone(live.box)
        self._server.say({"event": "died", "box": live.box, "status": status})
        self._unmounter.take(live.mounts, slow=live.loop >= 0 or live.durable)
        self._volumes.gone(live.box)

    # --- the end

    def _begin_end(self, peer: Peer | None, number: int) -> None:
        self._ending = peer, number
        self._jobs.kill()
        self._ends.end_all()
        for live in self._spares:
            kill(live.pidfd)

    def _finish(self) -> None:
        assert self._ending is not None
        self._selector.unregister(self._listener.sock)
        self._listener.close()
        if self._cgroups is not None:
            self._cgroups.sweep()
            self._cgroups.close()
        self._selector.unregister(self._nursery)
        self._nursery.close()
        if self._steward is not None:
            self._steward.close()
        self._unmounter.close()
        self._uplink.close()
        self._server.say({"n": self._ending[1], "ok": True})
        while (peer := self._server.peer) is not None and peer.behind and (ready := self._selector.select(_LONELY)):
            for key, _ in ready:
                key.data()


if __name__ == "__main__":
    start(Zygote)
