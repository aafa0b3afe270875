"""Layers and overlays for tests: made, shown and compared as a box would see them, in processes of their own."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import pickle
import secrets
import stat
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from boxwood.engine import kernel as k
from boxwood.engine.layers import jail
from boxwood.engine.overlay import prepare_top
from engine.layerjobs import Job

Tree = dict[str, tuple[Any, ...]]


def new_id() -> str:
    return "0" + "".join(secrets.choice("0123456789ABCDEFGHJKMNPQRSTVWXYZ") for _ in range(25))


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked process with mounts of its own; what it raises is raised here as text."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        gc.disable()  # what the tests' process left uncollected would close descriptors by numbers that are others' here
        try:
            k.unshare(k.NEWNS)
            k.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)
            said = pickle.dumps((work(), None))
        except BaseException:
            said = pickle.dumps((None, traceback.format_exc()))
        with open(writing, "wb") as f:
            f.write(said)
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as f:
        said = f.read()
    os.waitpid(pid, 0)
    result, failure = pickle.loads(said)
    if failure:
        raise AssertionError(failure)
    return result


def in_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns in a thread with mounts, a working directory and a umask of its own; what it raises is raised
    here. To fork this process would take far longer."""
    said: list[Any] = []

    def thread() -> None:
        try:
            k.unshare(k.NEWNS)
            k.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)
            said.extend((work(), None))
        except BaseException as error:
            said[:] = [None, error]

    running = threading.Thread(target=thread)
    running.start()
    running.join()
    result, failure = said
    if failure is not None:
        raise failure
    return result


class Layers:
    """A directory of layers. `forked`: jobs are done in children of this very process, with what a test has put into
    it."""

    def __init__(self, root: Path, *, forked: bool = False) -> None:
        self._forked = forked
        self.root, self.images, self.mount_point = root / "layers", root / "images", root / "mnt"
        for directory in (self.root, self.images, self.mount_point):
            directory.mkdir()

    def new(self) -> str:
        ident = new_id()
        for name in ("upper", "work"):
            (self.root / ident / name).mkdir(parents=True)
        return ident

    def upper(self, ident: str) -> Path:
        return self.root / ident / "upper"

    def shown(self, layers: Sequence[str], top: str | None, work: Callable[[Path], Any]) -> Any:
        """What `work` returns of the mounted overlay of `layers` (topmost first) under `top`."""

        def there() -> Any:
            self.mount(layers, top)
            try:
                os.umask(0o022)
                return work(self.mount_point)
            finally:
                k.umount(str(self.mount_point))  # at once: what ends with a thread ends in its own time

        return in_thread(there)

    def mount(self, layers: Sequence[str], top: str | None) -> None:
        """In this mount namespace, with the options of a box's root."""
        filesystem = k.Filesystem("overlay")
        for key, value in (("userxattr", None), ("redirect_dir", "nofollow"), ("metacopy", "off"), ("index", "off")):
            filesystem.set(key, value)
        below = self.root / "nothing"
        below.mkdir(exist_ok=True)
        for path in [self.upper(ident) for ident in layers] or [below]:
            filesystem.set("lowerdir+", str(path))
        if len(layers) == 1 and top is None:
            filesystem.set("lowerdir+", str(below))  # two at least
        if top is not None:
            layers = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            prepare_top(layers, top)
            os.close(layers)
            filesystem.set("upperdir", str(self.upper(top)))
            filesystem.set("workdir", str(self.root / top / "work"))
            filesystem.set("volatile")  # else each end flushes the host's whole file system
        fd = filesystem.create(k.ATTR_NODEV)
        k.move_mount(fd, str(self.mount_point))
        os.close(fd)

    def write(self, top: str, work: Callable[[Path], Any], layers: Sequence[str] = ()) -> Any:
        return self.shown(layers, top, work)

    def job(self, stream: int | None = None, **job: Any) -> dict[str, Any]:
        """The answer of a job, done as a child of the zygote does it. `stream`: its other pipe."""
        reading, writing = os.pipe()
        fds = [*self._places(), writing]
        given = fds if stream is None else [*fds, stream]
        end = _forked(job, given) if self._forked else Job(job, given).end
        for fd in fds:
            os.close(fd)
        with open(reading) as f:
            said = f.read()
        assert end() == 0
        return dict(json.loads(said))

    def begun(self, **job: Any) -> Job:
        """A job that somebody is to disturb: what it answers nobody hears."""
        with open(os.devnull, "w") as nowhere:
            places = self._places()
            try:
                return Job(job, [*places, nowhere.fileno()])
            finally:
                for fd in places:
                    os.close(fd)

    def _places(self) -> list[int]:
        return [os.open(directory, os.O_RDONLY | os.O_DIRECTORY) for directory in (self.root, self.images)]

    def names(self) -> set[str]:
        return {entry.name for entry in self.root.iterdir()} - {"nothing"}

    def copy(self, source: str) -> str:
        """Both passes, one after the other."""
        target = new_id()
        first = self.job(kind="copy", source=source, target=target, phase=1)
        assert first.get("ok"), first
        second = self.job(kind="copy", source=source, target=target, phase=2, since=first["since"])
        assert second.get("ok"), second
        return target


def _forked(job: dict[str, Any], fds: Sequence[int]) -> Callable[[], int]:
    pid = os.fork()
    if pid == 0:
        gc.disable()  # as in the zygote, see `in_child`
        jail.jailed(job, *fds[:3], stream_fd=fds[3] if len(fds) > 3 else None)
    return lambda: os.waitpid(pid, 0)[1]


def tree(top: Path | str, *, times: bool = True) -> Tree:
    """All that can be seen of a tree, by path: type, mode, owner, size, links, times, attributes, contents."""
    found: Tree = {}
    first_name: dict[int, str] = {}

    def add(path: str, shown: str) -> None:
        s = os.lstat(path)
        kind = stat.S_IFMT(s.st_mode)
        contents: Any = None
        if stat.S_ISREG(s.st_mode):
            contents = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        elif stat.S_ISLNK(s.st_mode):
            contents = os.readlink(path)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            contents = s.st_rdev
        linked = first_name.setdefault(s.st_ino, shown) if not stat.S_ISDIR(s.st_mode) else None
        attributes = {n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)}
        size = 0 if stat.S_ISDIR(s.st_mode) else s.st_size
        when = s.st_mtime_ns if times else None
        mode = stat.S_IMODE(s.st_mode)
        found[shown] = (kind, mode, s.st_uid, s.st_gid, size, linked, when, sorted(attributes.items()), contents)
        if stat.S_ISDIR(s.st_mode):
            for name in sorted(os.listdir(path)):
                add(f"{path}/{name}", f"{shown}/{name}")

    add(str(top), ".")
    return found


def difference(a: Tree, b: Tree) -> dict[str, tuple[Any, Any]]:
    return {path: (a.get(path), b.get(path)) for path in sorted(a.keys() | b.keys()) if a.get(path) != b.get(path)}
