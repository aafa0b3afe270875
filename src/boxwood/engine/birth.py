"""What a child of the nursery does until it is a box: the processes of a box are born here."""

from __future__ import annotations

import array
import ctypes
import gc
import json
import os
import pickle
import resource
import signal
import socket
from typing import Any, NoReturn

from boxwood.engine import box, frames
from boxwood.engine import kernel as k
from boxwood.engine.agent import main as agent
from boxwood.engine.descriptors import close_all_but
from boxwood.engine.disk import image
from boxwood.engine.network.wire import Wire

# Where the host's core_pattern is a pipe, the kernel starts its program as root of the host, whatever the limit; but
# not for a limit of one byte. Nobody in a box can raise it.
_NO_CORE = 1
PACKET_LIMIT = 1 << 17  # between server, zygote and what it prepares
DESCRIPTORS = 253  # that go with a packet at most


def send_ground(hook: socket.socket, ground: box.Ground, door: socket.socket | None) -> None:
    """What a child that has the other end of the hook waits for. `door`: see Ground; the caller's. OSError."""
    fds = [*ground.range.descriptors(), *((door.fileno(),) if door is not None else ())]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    hook.sendmsg([pickle.dumps(ground)], rights, socket.MSG_NOSIGNAL)


def _receive_ground(hook: socket.socket) -> box.Ground:
    packet, ancillary, *_ = hook.recvmsg(PACKET_LIMIT, socket.CMSG_SPACE(4 * DESCRIPTORS), socket.MSG_CMSG_CLOEXEC)
    if not packet:
        os._exit(0)  # the zygote is gone
    ground: box.Ground = pickle.loads(packet)  # noqa: S301 - the zygote wrote it
    fds = array.array("i", ancillary[0][2])
    count = len(ground.range.descriptors())
    ground.range.adopt(fds[:count])
    ground.door = fds[count] if len(fds) > count else -1
    return ground


def live_as_box(hook: socket.socket) -> NoReturn:
    """The child's side: prepare, wait for a VM, become its box. A failure is told over the link, once there is one."""
    step = box.Step()
    failure, pid_one, plug = "", None, None
    try:
        reset_signals()
        close_all_but(hook.fileno())
        ground = _receive_ground(hook)
        range_ = ground.range
        resource.setrlimit(resource.RLIMIT_CORE, (_NO_CORE, _NO_CORE))
        _disguise(b"agent")
        gc.enable()  # what was there before is frozen: a collection touches only what is new
        plug = box.prepare(ground, step)
        step.name = "agent"
        with box.as_owner(range_):
            pid_one = agent.Agent(box.RUNTIME_DIRECTORY, hook)
            pid_one.desk.make_ready(lambda: box.enter(ground))
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        k.prefer_short_turns()
    except BaseException as error:
        failure = _told(step, error)
    packet, ancillary, *_ = hook.recvmsg(PACKET_LIMIT, socket.CMSG_SPACE(4 * DESCRIPTORS), socket.MSG_CMSG_CLOEXEC)
    if not packet:
        os._exit(0)  # never needed
    link, *disk_fds = array.array("i", ancillary[0][2])
    try:
        if pid_one is None or plug is None or failure:
            raise RuntimeError(failure)
        box.become(ground, _plan(json.loads(packet), disk_fds), plug, pid_one.desk.open_up, step)
    except BaseException as error:
        socket.socket(fileno=link).sendall(frames.pack({"boot": "failed", "error": failure or _told(step, error)}))
        os._exit(70)
    try:
        pid_one.serve(link)
    finally:
        os._exit(71)


def _plan(fields: dict[str, Any], fds: list[int]) -> box.Plan:
    """`fds`: of each of its disks the file and the device, and then, if there are any, image.SYSFS."""
    disks = tuple(
        image.Attached(layer, fds[2 * at], fds[2 * at + 1], number, read_only, sealed, ours)
        for at, (layer, number, read_only, sealed, ours) in enumerate(fields["disks"])
    )
    wire = Wire(*fields["wire"]) if fields["wire"] else None
    return box.Plan(
        tuple((place, ident) for place, ident in fields["layers"]), fields["top"], fields["hostname"], wire,
        fields["read_only"], disks, fields["disk_limit"], fds[-1] if disks else -1, fields["project"],
        fields["durable"],
    )  # fmt: skip


def reset_signals() -> None:
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def _disguise(name: bytes) -> None:
    """Put a neutral name where the command line was: `ps` in a box shows it, and must show no path of the host."""
    fd = os.open("/proc/self/stat", os.O_RDONLY | os.O_CLOEXEC)
    start, end = map(int, os.read(fd, 4096).rsplit(b")", 1)[1].split()[45:47])
    os.close(fd)
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, name, min(len(name), end - start - 1))
    k.set_name(name.decode())


def _told(step: box.Step, error: BaseException) -> str:
    return f"{step.name}: {type(error).__name__}: {error}"[:2000]
