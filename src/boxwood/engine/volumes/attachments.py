"""The volumes that boxes have, as the zygote knows them: a descriptor of each mount, which goes with the box."""

from __future__ import annotations

import array
import json
import os
import selectors
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from boxwood.engine.api import Limits
from boxwood.engine.disk import IMAGE, image
from boxwood.engine.disk.projects import Projects
from boxwood.engine.overlay import prepare_top
from boxwood.engine.ranges import BoxRange
from boxwood.engine.ulid import checked
from boxwood.engine.volumes import PLACE, entering
from boxwood.engine.volumes.api import MOUNT_POINT_BYTES

_PACKET = 4096
_MOST = 64  # mounts of a box
_MOST_KNOWN = 1000  # loop devices that are remembered; those that boxes have, always
Answer = dict[str, Any]
Answering = Callable[[Answer], None]


class Inside:
    """A live box, as far as this goes: its id, a descriptor to enter its mount namespace by, its ids."""

    def __init__(self, box: str, entry: int, range_: BoxRange) -> None:
        self.box, self.entry, self.range = box, entry, range_


@dataclass(slots=True)
class _Held:
    volume: str
    mount: int
    in_file: bool


class Attachments:
    """`let_go`: closes a descriptor where it may take its time; with `slow`, something is written out meanwhile."""

    def __init__(
        self,
        data: Path,
        layers_fd: int,
        selector: selectors.BaseSelector,
        let_go: Callable[[int, bool], None],
        *,
        rootless: bool,
    ) -> None:
        self._layers = layers_fd
        self._rootless = rootless
        self._stage = str(data / "mnt")
        self._selector = selector
        self._let_go = let_go
        self._mounts: dict[str, dict[str, _Held]] = {}  # by box and mount
        self._had: dict[str, set[str]] = {}  # volumes, by box: its processes may be in those that were taken away too
        self._coming: set[tuple[str, str]] = set()

    @cached_property
    def fd(self) -> int:
        """The directory of volumes, made when it is first asked for."""
        with suppress(FileExistsError):
            os.mkdir(PLACE, 0o700, dir_fd=self._layers)
        return os.open(PLACE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._layers)

    @cached_property
    def projects(self) -> Projects:
        return Projects(self.fd, ours=not self._rootless)

    @cached_property
    def _disks(self) -> image.Disks:
        return image.Disks(self.fd)

    @property
    def loops(self) -> Mapping[str, int]:
        return self._disks.known

    def of(self, box: str) -> list[str]:
        return sorted(self._mounts.get(box, ()))

    @property
    def held(self) -> list[str]:
        """Volumes that a living box has or has had."""
        return sorted(set().union(*self._had.values()))

    def make(self, request: dict[str, Any]) -> Answer:
        """The directory of a new volume, with its limit if the file system counts; its file is there already, if it
        lies in one."""
        volume, limit = checked(request["volume"]), int(request["limit"])
        if not os.access(f"{volume}/{IMAGE}", os.F_OK, dir_fd=self.fd):
            self.projects.prepare(volume, Limits(disk=limit))
            prepare_top(self.fd, volume)
        return {"ok": True, "limit": limit}

    def attach(self, inside: Inside, request: dict[str, Any], answer: Answering) -> None:
        """`answer` is called when it is there, or is not to be. OSError, ValueError: nothing was begun."""
        mount, volume = checked(request["mount"]), checked(request["volume"])
        key, path = (inside.box, mount), _path(request["path"])
        if mount in self._mounts.get(inside.box, ()):
            answer({"ok": True})
            return
        if key in self._coming:
            raise ValueError("this mount is being made")
        if len(self._mounts.get(inside.box, ())) >= _MOST:
            raise ValueError(f"a box has at most {_MOST} mounts")
        self._forget_devices()
        disk = self._disks.attach(volume, read_only=False)
        try:
            order = entering.Order(
                inside.entry, inside.range, self.fd, volume, path, bool(request["read_only"]), self._stage, disk,
                int(request["limit"]),
            )  # fmt: skip
            self._had.setdefault(inside.box, set()).add(volume)  # from before it is there
            self._coming.add(key)
            try:
                self._enter(
                    lambda said: entering.attach(order, said),
                    lambda said, fds: self._attached(key, order, said, fds, answer),
                )
            except BaseException:
                self._coming.discard(key)
                raise
        finally:
            if disk is not None:
                disk.close()

    def detach(self, inside: Inside, request: dict[str, Any], answer: Answering) -> None:
        mount = checked(request["mount"])
        held = self._mounts.get(inside.box, {}).get(mount)
        if held is None:
            if (inside.box, mount) in self._coming:
                raise ValueError("this mount is being made")
            answer({"ok": True, "busy": False})
            return
        self._enter(
            lambda said: entering.detach(inside.entry, held.mount, said),
            lambda said, fds: self._detached(inside.box, mount, said, answer),
        )

    def gone(self, box: str) -> None:
        """Nothing of the box is left."""
        self._had.pop(box, None)
        for held in self._mounts.pop(box, {}).values():
            self._let_go(held.mount, held.in_file)

    def _attached(
        self, key: tuple[str, str], order: entering.Order, said: Answer, fds: list[int], answer: Answering
    ) -> None:
        self._coming.discard(key)
        box, mount = key
        if not fds:
            answer(said)
            return
        held = _Held(order.volume, fds[0], order.disk is not None)
        if box not in self._had:  # it has died meanwhile
            self._let_go(held.mount, held.in_file)
            answer({"error": "the box has died"})
            return
        if order.disk is not None:
            self._disks.known[order.volume] = order.disk.number  # also if its lock had to be waited for
        self._mounts.setdefault(box, {})[mount] = held
        answer({"ok": True})

    def _detached(self, box: str, mount: str, said: Answer, answer: Answering) -> None:
        if "ok" in said and (held := self._mounts.get(box, {}).pop(mount, None)) is not None:
            self._let_go(held.mount, held.in_file)
        answer(said)

    def _enter(self, work: Callable[[socket.socket], object], heard: Callable[[Answer, list[int]], None]) -> None:
        """Have a process do it, and hear of it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                raise
            if pid == 0:
                try:
                    work(theirs)
                finally:
                    os._exit(1)

        def readable() -> None:
            self._selector.unregister(ours)
            packet, ancillary, *_ = ours.recvmsg(_PACKET, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
            ours.close()
            os.waitpid(pid, 0)
            fds = [fd for *_, rights in ancillary for fd in array.array("i", rights)]
            heard(json.loads(packet) if packet else {"error": "its process was cut off"}, fds)

        self._selector.register(ours, selectors.EVENT_READ, readable)

    def _forget_devices(self) -> None:
        if len(self._disks.known) > _MOST_KNOWN:
            live = {held.volume for mounts in self._mounts.values() for held in mounts.values()}
            self._disks.known = {name: number for name, number in self._disks.known.items() if name in live}


def _path(path: object) -> str:
    """As the core has made sure that it is. ValueError."""
    if not isinstance(path, str) or len(os.fsencode(path)) > MOUNT_POINT_BYTES or "\0" in path:
        raise ValueError("no path to mount at")
    names = path.split("/")
    if names[0] or len(names) < 2 or not {"", ".", ".."}.isdisjoint(names[1:]):
        raise ValueError("a path to mount at is absolute and in its shortest form")
    return path
