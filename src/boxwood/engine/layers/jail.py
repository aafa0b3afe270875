"""A job on layer directories, in a child of the zygote: what a box left there is handled where it can do no harm.

Two processes. The outer one touches nothing but names directly under the directory of layers: it makes, renames and
answers. The inner one, forked for the work, sees nothing but the directories concerned, bound into an empty root (what
it only reads is bound read-only), has no network, no other processes, no device nodes and hardly a capability.

Whatever is not finished is under a name that is no layer's: `ID.part` while it is made, `.dead-ID` while it is deleted.
A `remove` of ID clears these too, so nothing that was cut off stays.

Jobs, ids being ULIDs, and what they answer with as one line of JSON (or `{"error": text}`)::

    {"kind": "copy", "source": ID, "target": ID, "phase": 1}        {"ok": true, "inodes": n, "bytes": n, "since": ns}
    {"kind": "copy", …, "phase": 2, "since": ns}, the box frozen    {"ok": true, "inodes": n, "bytes": n}
    {"kind": "merge", "layers": [[place, ID], …], "target": ID}     {"ok": true, "inodes": n, "bytes": n, "links": n}
    {"kind": "remove", "layers": [ID, …]}                           {"ok": true, "inodes": n}
    {"kind": "look", "layer": ID}                                   {"ok": true, "inodes": n, "bytes": n, "empty": 0/1}

What lies in a file of its own (engine/disk) is mounted for the job, or reached through the loop device of the box that
has it: the zygote tells which.
"""

from __future__ import annotations

import array
import json
import os
import resource
import select
import signal
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from boxwood.engine import kernel as k
from boxwood.engine.disk import image, projects
from boxwood.engine.layers import copy, measure, merge, remove
from boxwood.engine.layers.inodes import READ_DIRECTORY
from boxwood.engine.ulid import checked

Answer = dict[str, Any]
Work = Callable[[Mapping[str, int]], Answer]

_CAPABILITIES = k.capability_mask("chown", "dac_override", "dac_read_search", "fowner", "fsetid", "setfcap")
_LOCKED = k.ATTR_NOSUID | k.ATTR_NODEV | k.ATTR_NOEXEC
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILES = 1 << 20  # two for each level of a tree
_MEMORY = 4 << 30  # bytes of address space: a tree that needs more is refused, rather than the host starved
_ANSWER_LIMIT = 1 << 16
_NO_LOOPS: image.Loops = {}


class JobFailed(Exception):
    """What the inner process says went wrong."""


def jailed(
    job: dict[str, Any], layers_fd: int, images_fd: int, out_fd: int, loops: image.Loops = _NO_LOOPS
) -> NoReturn:
    """Do a job in this process, which was forked for it, write the answer to `out_fd` and end. `loops`: the devices
    of layers in files, as far as they are known; of all that boxes write to."""
    status = 1
    try:
        k.set_death_signal(signal.SIGKILL)
        k.set_name("layers")
        _Outer(layers_fd, images_fd, out_fd, loops).run(job)
        status = 0
    except BaseException:
        traceback.print_exc()  # to the zygote's log: nobody reads the answer any more
    finally:
        os._exit(status)


class _Outer:
    def __init__(self, layers_fd: int, images_fd: int, out_fd: int, loops: image.Loops) -> None:
        self._layers, self._images, self._out = layers_fd, images_fd, out_fd
        self._disks = image.Disks(layers_fd, loops)
        _keep_only(layers_fd, images_fd, out_fd)
        with open("/proc/self/oom_score_adj", "w") as f:
            f.write("500")

    def run(self, job: dict[str, Any]) -> None:
        kinds = {"copy": self._copy, "merge": self._merge, "remove": self._remove, "look": self._look}
        unfinished: list[str] = []
        try:
            answer = {"ok": True, **kinds[job["kind"]](job, unfinished)}
        except Exception as error:
            answer = _failure(error)
        os.write(self._out, json.dumps(answer).encode() + b"\n")
        os.close(self._out)  # nobody waits for what is left to do
        if unfinished:
            self._delete(unfinished, whole=False)

    def _copy(self, job: dict[str, Any], unfinished: list[str]) -> Answer:
        source, target = checked(job["source"]), checked(job["target"])
        phase = {1: _first_pass, 2: _second_pass}[job["phase"]]
        if job["phase"] == 1:
            self._begin(target)
        unfinished.append(target)
        since = int(job.get("since", 0))
        trees = {"source": self._upper(source), "target": self._bound(f"{target}.part")}
        answer = _confined(trees, lambda at: phase(at, since))
        if job["phase"] == 1:
            unfinished.clear()
        else:
            self._finish(target)
        return answer

    def _merge(self, job: dict[str, Any], unfinished: list[str]) -> Answer:
        os.nice(5)
        layers = [(str(place), checked(ident)) for place, ident in job["layers"]]
        target = checked(job["target"])
        self._begin(target)
        unfinished.append(target)
        # A hard link needs both names on one mount, so all layers of the data directory are in reach here.
        trees = {"data": self._bound(".")}
        for place, ident in layers:
            if place == "data" and (tree := self._in_file(ident)) is not None:
                trees[ident] = tree
        if any(place == "image" for place, _ in layers):
            trees["image"] = k.open_tree("", self._images)
            k.mount_setattr(trees["image"], _LOCKED | k.ATTR_RDONLY)
        answer = _confined(trees, lambda at: _merge(at, layers, target))
        self._finish(target)
        return answer

    def _look(self, job: dict[str, Any], unfinished: list[str]) -> Answer:
        layer = checked(job["layer"])
        if (tree := self._in_file(layer)) is not None:
            return _confined({"source": tree}, lambda at: _look_in_file(at["source"]))
        try:
            tree = self._bound(f"{layer}/upper", k.ATTR_RDONLY)
        except FileNotFoundError:
            return {"bytes": 0, "inodes": 0, "empty": 1}
        if (counted := projects.known(self._layers, layer)) is not None:
            here = {"bytes": counted.bytes, "inodes": counted.inodes}
            return _confined({"source": tree}, lambda at: {**here, "empty": int(not os.listdir(at["source"]))})
        return _confined({"source": tree}, lambda at: _look(at["source"]))

    def _remove(self, job: dict[str, Any], unfinished: list[str]) -> Answer:
        os.nice(5)
        return self._delete([checked(ident) for ident in job["layers"]], whole=True)

    def _delete(self, idents: list[str], *, whole: bool) -> Answer:
        """Delete what was cut off of these layers; with `whole`, the layers as well."""
        trees = {}
        for ident in idents:
            for name in (ident, f"{ident}.part") if whole else (f"{ident}.part",):
                self._scrap(name, ident)
            try:
                trees[ident] = self._bound(f".dead-{ident}")
            except FileNotFoundError:
                pass
        if not trees:
            return {"inodes": 0}
        answer = _confined(trees, lambda at: {"inodes": sum(remove.empty(fd) for fd in at.values())})
        for ident in trees:
            os.rmdir(f".dead-{ident}", dir_fd=self._layers)
        return answer

    def _begin(self, target: str) -> None:
        try:
            os.stat(target, dir_fd=self._layers, follow_symlinks=False)
        except FileNotFoundError:
            pass
        else:
            raise FileExistsError(f"layer {target} is there already")
        os.mkdir(f"{target}.part", 0o755, dir_fd=self._layers)
        for name in ("upper", "links"):
            os.mkdir(f"{target}.part/{name}", 0o755, dir_fd=self._layers)

    def _finish(self, target: str) -> None:
        """What only the making needed goes first: a layer that is there is whole, and nothing else."""
        for name in ("links", "record"):
            self._scrap(f"{target}.part/{name}", target)
        os.rename(f"{target}.part", target, src_dir_fd=self._layers, dst_dir_fd=self._layers)

    def _scrap(self, path: str, ident: str) -> None:
        """Move what may be there out of the way: it is as good as deleted."""
        try:
            os.stat(path, dir_fd=self._layers, follow_symlinks=False)
        except FileNotFoundError:
            return
        try:
            os.mkdir(f".dead-{ident}", 0o700, dir_fd=self._layers)
        except FileExistsError:
            pass
        unique = f".dead-{ident}/{os.urandom(8).hex()}"
        os.rename(path, unique, src_dir_fd=self._layers, dst_dir_fd=self._layers)

    def _upper(self, ident: str) -> int:
        """A layer's tree, detached, to be read."""
        tree = self._in_file(ident)
        return self._bound(f"{ident}/upper", k.ATTR_RDONLY) if tree is None else tree

    def _in_file(self, ident: str) -> int | None:
        """The same of a layer that lies in a file; None: it does not. Waits until what a box that has ended has
        written is there."""
        attached = self._disks.attach(ident, read_only=True)
        if attached is None:
            return None
        root = image.mount(attached)
        attached.close()
        try:
            tree = k.open_tree("upper", root)
        finally:
            os.close(root)
        k.mount_setattr(tree, _LOCKED | k.ATTR_RDONLY)
        return tree

    def _bound(self, path: str, attributes: int = 0) -> int:
        """A detached mount of a directory, made while this is still the mount namespace that it is in."""
        fd = os.open(path, _PLACE, dir_fd=self._layers)
        try:
            tree = k.open_tree("", fd)
        finally:
            os.close(fd)
        k.mount_setattr(tree, _LOCKED | attributes)
        return tree


def _first_pass(at: Mapping[str, int], since: int) -> Answer:
    upper, links = _open_parts(at["target"])
    since = copy.start(at["source"])
    record, count = copy.copy_top(at["source"], upper, links)
    numbers = array.array("q", [number for ino, (made, ctime) in record.items() for number in (ino, made, ctime)])
    fd = os.open("record", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=at["target"])
    with open(fd, "wb") as f:
        f.write(numbers.tobytes())
    return {"inodes": count.inodes, "bytes": count.bytes, "since": since}


def _second_pass(at: Mapping[str, int], since: int) -> Answer:
    upper, links = _open_parts(at["target"])
    with open(os.open("record", os.O_RDONLY | os.O_CLOEXEC, dir_fd=at["target"]), "rb") as f:
        numbers = array.array("q", f.read())
    record = dict(zip(numbers[0::3], zip(numbers[1::3], numbers[2::3], strict=True), strict=True))
    count = copy.catch_up(at["source"], upper, links, record, since)
    return {"inodes": count.inodes, "bytes": count.bytes}


def _open_parts(part: int) -> tuple[int, int]:
    return os.open("upper", READ_DIRECTORY, dir_fd=part), os.open("links", READ_DIRECTORY, dir_fd=part)


def _merge(at: Mapping[str, int], layers: list[tuple[str, str]], target: str) -> Answer:
    sources = [
        os.open(".", READ_DIRECTORY, dir_fd=at[ident])
        if ident in at
        else os.open(f"{ident}/upper", READ_DIRECTORY, dir_fd=at[place])
        for place, ident in layers
    ]
    upper, links = _open_parts(os.open(f"{target}.part", READ_DIRECTORY, dir_fd=at["data"]))
    count = merge.merge(sources, upper, links)
    return {"inodes": count.inodes, "bytes": count.bytes, "links": count.links}


def _look_in_file(source: int) -> Answer:
    taken, inodes = image.used(source)
    return {"bytes": taken, "inodes": inodes, "empty": int(not os.listdir(source))}


def _look(source: int) -> Answer:
    count = measure.tree(source)
    return {"bytes": count.bytes, "inodes": count.inodes, "empty": int(not os.listdir(source))}


def _failure(error: Exception) -> Answer:
    text = str(error) if isinstance(error, JobFailed) else f"{type(error).__name__}: {error}"
    return {"error": text[:2000]}


# --- the inner process


def _confined(trees: Mapping[str, int], work: Work) -> Answer:
    """What `work` returns in a process that sees nothing but these trees, given to it as descriptors."""
    reading, writing = os.pipe()
    pid = _fork_alone()
    if pid == 0:
        try:
            os.close(reading)
            try:
                answer = work(_confine(trees, writing))
            except Exception as error:
                answer = _failure(error)
            os.write(writing, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writing)
    for tree in trees.values():
        os.close(tree)
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
    """fork() into a pid namespace of its own: root in there has nobody to send signals to."""
    ours = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    k.unshare(k.NEWPID)  # for the children of this process
    pid = os.fork()
    if pid:
        k.setns(ours, k.NEWPID)
    os.close(ours)
    return pid


def _confine(trees: Mapping[str, int], keep: int) -> dict[str, int]:
    """Shut this process in with the trees. Returns a descriptor for each."""
    k.set_death_signal(signal.SIGKILL)
    if _reader_gone(keep):
        raise ProcessLookupError("the job was ended before it began")
    _set_limits()
    os.umask(0o077)
    k.unshare(k.NEWNS | k.NEWNET | k.NEWIPC)
    k.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)
    filesystem = k.Filesystem("tmpfs")
    filesystem.set("size", "1m")
    root = filesystem.create(_LOCKED)
    k.move_mount(root, "/")
    os.fchdir(root)
    for name, tree in trees.items():
        os.mkdir(name, 0o700)
        k.move_mount(tree, name)
    k.mount_setattr(root, k.ATTR_RDONLY, recursive=False)
    k.pivot_here()
    _keep_only(keep)
    opened = {name: os.open(f"/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for name in trees}
    k.limit_bounding_set(_CAPABILITIES, _last_capability)
    k.no_new_privileges()
    k.set_capabilities(_CAPABILITIES)
    return opened


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


def _keep_only(*fds: int) -> None:
    """Close every descriptor but these and 0 to 2."""
    low = 3
    for fd in sorted(fds):
        os.closerange(low, fd)
        low = max(low, fd + 1)
    os.closerange(low, 1 << 20)
