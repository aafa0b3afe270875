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
    {"kind": "diff", "layers": [[place, ID], …], "old": [n, …], "new": [n, …], "most": n, "text": bool, "below": path},
    n being positions in `layers`; the changes go to a second pipe    {"ok": true, "truncated": 0/1}
    {"kind": "pack", "layers": [[place, ID], …], "whole": bool}; an archive goes to the second pipe
                                                                            {"ok": true, "inodes": n}
    {"kind": "unpack", "target": ID, "whole": bool, "most": bytes, "hide": ID of an image or ""}; from the second pipe
                                                                            {"ok": true, "inodes": n, "bytes": n}
    {"kind": "commit", "layers": …, "base": [n, …], "theirs": [n, …], "ours": [n, …], "target": ID}; paths that collide
    go to the second pipe, and then no layer is made        {"ok": true, "collisions": n, "inodes": n, "bytes": n}
    {"kind": "check", "layer": ID}                                  {"ok": true, "inodes": n}

What lies in a file of its own (engine/disk) is mounted for the job, or reached through the loop device of the box that
has it: the zygote tells which.
"""

from __future__ import annotations

import array
import errno
import json
import math
import os
import signal
import stat
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from boxwood.engine import kernel as k
from boxwood.engine import roots
from boxwood.engine.descriptors import close_all_but
from boxwood.engine.disk import image, projects
from boxwood.engine.layers import check, commit, copy, measure, merge, pack, remove, unpack, view
from boxwood.engine.layers.confinement import LOCKED, Answer, Below, Trees, confined, failure
from boxwood.engine.layers.inodes import READ_DIRECTORY
from boxwood.engine.layers.report import Report
from boxwood.engine.ulid import checked

_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_COLLISIONS = 1000  # that are told
_NO_LOOPS: image.Loops = {}


def jailed(
    job: dict[str, Any],
    layers_fd: int,
    images_fd: int,
    out_fd: int,
    loops: image.Loops = _NO_LOOPS,
    stream_fd: int | None = None,
) -> NoReturn:
    """Do a job in this process, which was forked for it, write the answer to `out_fd` and end. `loops`: the devices
    of layers in files, as far as they are known; of all that boxes write to. `stream_fd`: a pipe for what is too much
    for an answer."""
    status = 1
    try:
        k.set_death_signal(signal.SIGKILL)
        k.set_name("layers")
        _Outer(layers_fd, images_fd, out_fd, loops, stream_fd).run(job)
        status = 0
    except BaseException:
        traceback.print_exc()  # to the zygote's log: nobody reads the answer any more
    finally:
        os._exit(status)


class _Outer:
    def __init__(self, layers_fd: int, images_fd: int, out_fd: int, loops: image.Loops, stream_fd: int | None) -> None:
        self._layers, self._images, self._out = layers_fd, images_fd, out_fd
        self._stream = stream_fd
        self._disks = image.Disks(layers_fd, loops)
        close_all_but(layers_fd, images_fd, out_fd, *(() if stream_fd is None else (stream_fd,)))
        with open("/proc/self/oom_score_adj", "w") as f:
            f.write("500")

    def run(self, job: dict[str, Any]) -> None:
        kinds = {
            "copy": self._copy, "merge": self._merge, "remove": self._remove, "look": self._look, "diff": self._diff,
            "check": self._check, "commit": self._commit, "pack": self._pack, "unpack": self._unpack,
        }  # fmt: skip
        unfinished: list[str] = []
        try:
            answer = {"ok": True, **kinds[job["kind"]](job, unfinished)}
        except Exception as error:
            answer = failure(error)
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
        trees: Trees = {"source": self._upper(source), "target": self._bound(f"{target}.part")}
        answer = confined(trees, lambda at: phase(at, since))
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
        trees: dict[str, int | Below] = {"data": self._bound(".")}
        for place, ident in layers:
            if place == "data" and (tree := self._in_file(ident)) is not None:
                trees[ident] = tree
        if any(place == "image" for place, _ in layers):
            trees["image"] = k.cloned("", self._images, LOCKED | k.ATTR_RDONLY)
        answer = confined(trees, lambda at: _merge(at, layers, target))
        self._finish(target)
        return answer

    def _look(self, job: dict[str, Any], unfinished: list[str]) -> Answer:
        layer = checked(job["layer"])
        if (root := self._mounted(layer)) is not None:
            taken, inodes, empty = image.seen(root)
            return {"bytes": taken, "inodes": inodes, "empty": int(empty)}
        try:
            tree = self._bound(f"{layer}/upper", k.ATTR_RDONLY)
        except FileNotFoundError:
            return {"bytes": 0, "inodes": 0, "empty": 1}
        as_made = self._is_as_made(layer)
        if (counted := projects.known(self._layers, layer)) is not None:
            here = {"bytes": counted.bytes, "inodes": counted.inodes}
            return confined(
                {"source": tree}, lambda at: {**here, "empty": int(as_made and not os.listdir(at["source"]))}
            )
        seconds = float(job.get("seconds", math.inf))
        return confined({"source": tree}, lambda at: _look(at["source"], seconds, as_made))

    def _is_as_made(self, layer: str) -> bool:
        fd = os.open(layer, _PLACE, dir_fd=self._layers)
        try:
            return roots.is_as_made(fd)
        finally:
            os.close(fd)

    def _diff(self, job: dict[str, Any], unfinished: list[str]) -> Answer:
        os.nice(5)
        trees = self._stack(job["layers"])
        old, new = ([int(n) for n in job[side]] for side in ("old", "new"))
        below = [name for name in str(job["below"]).split("/") if name]
        if {".", ".."} & set(below):
            raise ValueError("a path that leads elsewhere")
        most, texts = int(job["most"]), bool(job["text"])

        def work(at: Mapping[str, int], stream: int) -> Answer:
            a, b = (view.root([(n, at[str(n)]) for n in side]) for side in (old, new))
            with open(stream, "wb") as out:
                return Report(out, most, texts).run(a, b, below)

        return self._streamed(trees, work)

    def _commit(self, job: dict[str, Any], unfinished: list[str]) -> Answer:
        os.nice(5)
        layers, target = [(str(place), checked(ident)) for place, ident in job["layers"]], checked(job["target"])
        sides = [[int(n) for n in job[side]] for side in ("base", "theirs", "ours")]
        self._begin(target)
        unfinished.append(target)
        trees: dict[str, int | Below] = {"data": self._bound(".")}  # in which files can have another name
        for n, (place, ident) in enumerate(layers):
            if (tree := self._in_file(ident) if place == "data" else self._image(ident)) is not None:
                trees[str(n)] = tree
        answer = self._streamed(trees, lambda at, stream: _commit(at, stream, layers, sides, target))
        if not answer["collisions"]:
            self._finish(target)
        return answer

    def _pack(self, job: dict[str, Any], unfinished: list[str]) -> Answer:
        os.nice(5)
        trees, whole = self._stack(job["layers"]), bool(job["whole"])

        def work(at: Mapping[str, int], stream: int) -> Answer:
            packing = pack.Pack(stream, whole=whole)
            packing.run(view.root([(n, at[str(n)]) for n in range(len(at))]))
            return {"inodes": packing.entries}

        return self._streamed(trees, work)

    def _unpack(self, job: dict[str, Any], unfinished: list[str]) -> Answer:
        os.nice(5)
        target, hidden = checked(job["target"]), str(job["hide"])
        whole, most = bool(job["whole"]), int(job["most"])
        self._begin(target)
        unfinished.append(target)
        trees = {"target": self._bound(f"{target}.part")}
        if hidden:
            trees["hidden"] = self._image(checked(hidden))

        def work(at: Mapping[str, int], stream: int) -> Answer:
            upper, _ = _open_parts(at["target"])
            unpacking = unpack.Unpack(stream, upper, whole=whole, most=most)
            unpacking.run()
            if hidden:
                unpack.hide(upper, at["hidden"])
            if k.libc.syncfs(upper) < 0:
                raise OSError("the disk did not take it")
            return {"inodes": unpacking.inodes, "bytes": unpacking.bytes}

        answer = self._streamed(trees, work)
        self._finish(target)
        return answer

    def _stack(self, layers: list[list[str]]) -> Trees:
        """Their trees, to be read, by position."""
        return {
            str(n): self._upper(checked(ident)) if place == "data" else self._image(checked(ident))
            for n, (place, ident) in enumerate(layers)
        }

    def _image(self, ident: str) -> int:
        fd = os.open(f"{ident}/upper", _PLACE, dir_fd=self._images)
        try:
            return k.cloned("", fd, LOCKED | k.ATTR_RDONLY)
        finally:
            os.close(fd)

    def _streamed(self, trees: Trees, work: Callable[[Mapping[str, int], int], Answer]) -> Answer:
        """As `confined`, with the other pipe."""
        assert self._stream is not None
        stream = self._stream
        answer = confined(trees, lambda at: work(at, stream), stream)
        os.close(stream)
        return answer

    def _check(self, job: dict[str, Any], unfinished: list[str]) -> Answer:
        os.nice(5)
        return confined({"source": self._upper(checked(job["layer"]))}, lambda at: {"inodes": check.tree(at["source"])})

    def _remove(self, job: dict[str, Any], unfinished: list[str]) -> Answer:
        os.nice(5)
        return self._delete([checked(ident) for ident in job["layers"]], whole=True)

    def _delete(self, idents: list[str], *, whole: bool) -> Answer:
        """Delete what was cut off of these layers; with `whole`, the layers as well."""
        trees = {}
        for ident in idents:
            # What is not in a project first: nothing can be moved into one.
            for name in (f"{ident}.part", ident) if whole else (f"{ident}.part",):
                self._scrap(name, ident)
            try:
                trees[ident] = self._bound(f".dead-{ident}")
            except FileNotFoundError:
                pass
        if not trees:
            return {"inodes": 0}
        answer = confined(trees, lambda at: {"inodes": sum(remove.empty(fd) for fd in at.values())})
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
        """Move what may be there out of the way: it is as good as deleted. A directory by its name alone, if it can
        be: a disk that is full has no room for another one."""
        try:
            found = os.stat(path, dir_fd=self._layers, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(found.st_mode):
            try:
                os.rename(path, f".dead-{ident}", src_dir_fd=self._layers, dst_dir_fd=self._layers)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # there is one
                    raise
            else:
                return
        try:
            os.mkdir(f".dead-{ident}", 0o700, dir_fd=self._layers)
        except FileExistsError:
            pass
        unique = f".dead-{ident}/{os.urandom(8).hex()}"
        os.rename(path, unique, src_dir_fd=self._layers, dst_dir_fd=self._layers)

    def _upper(self, ident: str) -> int | Below:
        """A layer's tree, detached, to be read."""
        tree = self._in_file(ident)
        return self._bound(f"{ident}/upper", k.ATTR_RDONLY) if tree is None else tree

    def _in_file(self, ident: str) -> Below | None:
        """The same of a layer that lies in a file; None: it does not."""
        if (root := self._mounted(ident)) is None:
            return None
        k.mount_setattr(root, LOCKED | k.ATTR_RDONLY)
        return Below(root, "upper")

    def _mounted(self, ident: str) -> int | None:
        """The root of the file system that a layer lies in; None: it lies in none of its own. Waits until what a box
        that has ended has written is there."""
        attached = self._disks.attach(ident, read_only=True)
        if attached is None:
            return None
        root = image.mount(attached)
        attached.close()
        return root

    def _bound(self, path: str, attributes: int = 0) -> int:
        """A detached mount of a directory, made while this is still the mount namespace that it is in."""
        fd = os.open(path, _PLACE, dir_fd=self._layers)
        try:
            return k.cloned("", fd, LOCKED | attributes)
        finally:
            os.close(fd)


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


def _commit(
    at: Mapping[str, int], stream: int, layers: list[tuple[str, str]], sides: list[list[int]], target: str
) -> Answer:
    fds = [
        os.open(".", READ_DIRECTORY, dir_fd=at[str(n)])
        if str(n) in at
        else os.open(f"{ident}/upper", READ_DIRECTORY, dir_fd=at["data"])
        for n, (_, ident) in enumerate(layers)
    ]
    work = commit.Commit(*([(n, fds[n]) for n in side] for side in sides))
    if collisions := work.collisions(_COLLISIONS):
        with open(stream, "wb") as out:
            out.writelines(json.dumps(path).encode() + b"\n" for path in collisions)
        return {"collisions": len(collisions), "inodes": 0, "bytes": 0}
    found = work.make(*_open_parts(os.open(f"{target}.part", READ_DIRECTORY, dir_fd=at["data"])))
    return {"collisions": 0, "inodes": found.inodes, "bytes": found.bytes}


def _look(source: int, seconds: float, as_made: bool) -> Answer:
    count = measure.tree(source, seconds)
    return {"bytes": count.bytes, "inodes": count.inodes, "empty": int(as_made and not os.listdir(source))}
