"""The inner process of a job on layers: it sees nothing but the trees that it is given, bound into an empty root, has
no network, no other processes, no device nodes and hardly a capability."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from boxwood.engine import kernel as k
from boxwood.engine.descriptors import close_all_but

Answer = dict[str, Any]
Work = Callable[[Mapping[str, int]], Answer]


class Below(NamedTuple):
    """Of a file system that is attached nowhere (a descriptor of its root) the directory of this name."""

    root: int
    name: str


Trees = Mapping[str, int | Below]  # detached mounts

LOCKED = k.ATTR_NOSUID | k.ATTR_NODEV | k.ATTR_NOEXEC
_CAPABILITIES = k.capability_mask("chown", "dac_override", "dac_read_search", "fowner", "fsetid", "setfcap")
_OPEN_FILES = 1 << 20  # two for each level of a tree
_MEMORY = 4 << 30  # bytes of address space: a tree that needs more is refused, rather than the host starved
_ANSWER_LIMIT = 1 << 16


class JobFailed(Exception):
    """What the inner process says went wrong."""


def failure(error: Exception) -> Answer:
    text = str(error) if isinstance(error, JobFailed) else f"{type(error).__name__}: {error}"
    return {"error": text[:2000]}


def confined(trees: Trees, work: Work, *keep: int) -> Answer:
    """What `work` returns in a process that sees nothing but these trees, given to it as descriptors, and what it is to
    keep."""
    reading, writing = os.pipe()
    pid = _fork_alone()
    if pid == 0:
        try:
            os.close(reading)
            try:
                answer = work(_confine(trees, writing, *keep))
            except Exception as error:
                answer = failure(error)
            os.write(writing, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writing)
    for tree in trees.values():
        os.close(tree.root if isinstance(tree, Below) else tree)
    with open(reading, "rb") as f:
        said = f.read(_ANSWER_LIMIT)
    _, status = os.waitpid(pid, 0)
    if not said:
        raise JobFailed(f"its process ended early (status {status})")
    answer = json.loads(said)
    if "error" in answer:
        raise JobFailed(answer["error"])
    return {key: int(value) for key, value in answer.items()}


def _fork_alone() -> int:
    """fork() into a pid namespace of its own: root in there has nobody to send signals to. By way of a process that
    waits for it, since the way back out of such a namespace is open to the host's root alone."""
    if pid := os.fork():
        return pid
    try:
        k.set_death_signal(signal.SIGKILL)
        k.unshare(k.NEWPID)  # for the children of this process
        if pid := os.fork():
            close_all_but()
            os._exit(128 - code if (code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) < 0 else code)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    return 0


def _confine(trees: Trees, answers: int, *keep: int) -> dict[str, int]:
    """Shut this process in with the trees. Returns a descriptor for each."""
    k.set_death_signal(signal.SIGKILL)
    if _reader_gone(answers):
        raise ProcessLookupError("the job was ended before it began")
    _set_limits()
    os.umask(0o077)
    k.unshare(k.NEWNS | k.NEWNET | k.NEWIPC)
    k.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)
    filesystem = k.Filesystem("tmpfs")
    filesystem.set("size", "1m")
    root = filesystem.create(LOCKED)
    k.move_mount(root, "/")
    os.fchdir(root)
    for name, tree in trees.items():
        os.mkdir(name, 0o700)
        k.move_mount(_part(tree, name) if isinstance(tree, Below) else tree, name)
    k.mount_setattr(root, k.ATTR_RDONLY, recursive=False)
    k.pivot_here()
    close_all_but(answers, *keep)
    opened = {name: os.open(f"/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for name in trees}
    k.limit_bounding_set(_CAPABILITIES, _last_capability)
    k.no_new_privileges()
    k.set_capabilities(_CAPABILITIES)
    return opened


def _part(tree: Below, place: str) -> int:
    """A detached mount of it. `place`: an empty directory of ours. Before Linux 6.15 nothing is cloned that is not
    attached in the mount namespace of who clones it."""
    k.move_mount(tree.root, place)
    part = k.open_tree(f"{place}/{tree.name}")
    k.umount(place, k.MNT_DETACH)
    return part


_last_capability = k.last_capability()


def _reader_gone(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)
    return bool(poll.poll(0))


def _set_limits() -> None:
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    except ValueError:  # no CAP_SYS_RESOURCE: as many as we may
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
