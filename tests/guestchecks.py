"""What project quotas must do, checked where there are some: run as a script in the machine of guest.py.

Each check is a function; `CHECKS` has them by name, for the tests outside. Each line of the script's output is JSON:
`{"check": name, "failed": text}`, empty if it went through. Boxes are played by processes that have the root, the
user namespace and the credentials of one, made by the engine's own code.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from boxwood.core.ids import new_id
from boxwood.engine import kernel as k
from boxwood.engine import quota, storage
from boxwood.engine.api import Box, BoxSpec, EngineError, EngineUnavailable, Limits, RunEnd, RunSpec, SessionSpec, Stack
from boxwood.engine.host import HostEngine
from boxwood.engine.layers import jail
from boxwood.engine.overlay import Places, attach_views, mount_root, prepare_top
from boxwood.engine.uidrange import FIRST, Range

MIB = 1 << 20
KINDS = {"xfs": "/dev/vda", "ext4": "/dev/vdb"}
PLAIN = "/dev/vdc"  # ext4 without quotas
DATA, IMAGES = Path("/plain/data"), Path("/plain/images")
SECONDS = 300  # for a check; far more than any needs
FULL = (errno.ENOSPC, errno.EDQUOT)  # XFS says the first for a project that is full, ext4 the second
IMAGE = "0" + "A" * 25

CHECKS: dict[str, Callable[[], None]] = {}


class Disk:
    """A directory of layers on a file system with quotas, and images on another."""

    def __init__(self, kind: str, place: Path) -> None:
        self.kind, self.place = kind, place
        self.layers, self.images = place / "layers", IMAGES
        self.layers.mkdir(exist_ok=True)
        (self.images / IMAGE / "upper").mkdir(parents=True, exist_ok=True)
        for name, size in (("large", 30), ("small", 1)):
            (self.images / IMAGE / "upper" / name).write_bytes(b"y" * size * MIB)
        self.fd = os.open(self.layers, os.O_RDONLY | os.O_DIRECTORY)
        self.images_fd = os.open(self.images, os.O_RDONLY | os.O_DIRECTORY)
        self.quota = quota.Quota(self.fd)

    def top(self, most_bytes: int | None, most_inodes: int | None) -> tuple[str, int]:
        """A new top with limits: its id, its project."""
        top = new_id()
        project = self.quota.prepare_top(top, most_bytes, most_inodes)
        prepare_top(self.fd, top)
        return top, project

    def boxed(self, top: str, work: Callable[[], object], *, lift: bool = True) -> object:
        """What `work` returns as root of a box on this top. Its OSError, or that of the mount, is raised here."""
        prepare_top(self.fd, top)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                said: object = {"value": self._in_box(top, work, lift)}
            except OSError as error:
                said = {"errno": error.errno}
            except BaseException:
                said = {"failed": traceback.format_exc()}
            os.write(writing, json.dumps(said).encode())
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as answer:
            told = json.load(answer)
        os.waitpid(pid, 0)
        if "errno" in told:
            raise OSError(told["errno"], os.strerror(told["errno"]))
        assert "failed" not in told, told["failed"]
        return told["value"]

    def _in_box(self, top: str, work: Callable[[], object], lift: bool) -> object:
        range_ = Range(FIRST, self.fd, self.images_fd)
        k.unshare(k.NEWNS)
        k.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)
        k.mount("stage", "/mnt", "tmpfs")
        os.chdir("/mnt")
        os.mkdir("root")
        attach_views(range_, Places(str(self.layers), str(self.images)))
        stack = (("image", IMAGE),)
        if lift:
            at = os.open(top, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.fd)
            with quota.lifted(range_.layers, quota.project_of(at)[0]):
                mount_root(stack, top, range_, by_path=True)
        else:
            mount_root(stack, top, range_, by_path=True)
        os.chroot("root")
        os.chdir("/")
        k.setns(range_.userns, k.NEWUSER)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        return work()


DISKS: dict[str, Disk] = {}


def check(function: Callable[[Disk], None]) -> Callable[[Disk], None]:
    """To be made on each kind of file system."""
    for kind in KINDS:
        CHECKS[f"{kind}: {function.__name__}"] = lambda kind=kind: function(DISKS[kind])  # type: ignore[misc]
    return function


def once(function: Callable[[], None]) -> Callable[[], None]:
    CHECKS[function.__name__] = function
    return function


def fill(name: str, mib: int) -> int:
    """Write so many MiB: how many bytes it could."""
    written = 0
    try:
        with open(name, "wb", buffering=0) as file:
            while written < mib * MIB:
                written += file.write(b"x" * 65536)
            os.fsync(file.fileno())
    except OSError as error:
        assert error.errno in FULL, error
    return written


def bomb(count: int) -> int:
    """Make so many empty files: how many it could."""
    for made in range(count):
        try:
            os.close(os.open(f"/bomb-{made}", os.O_CREAT | os.O_WRONLY, 0o600))
        except OSError as error:
            assert error.errno in FULL, error
            return made
    return count


def refused(work: Callable[[], object], *errors: int) -> None:
    """It must fail so. (In a box.)"""
    try:
        work()
    except OSError as error:
        assert error.errno in errors, error
    else:
        raise AssertionError("it went through")


def job(disk: Disk, **what: object) -> dict[str, object]:
    """A job on layers, as the zygote has it done."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        jail.jailed(dict(what), disk.fd, disk.images_fd, writing)
    os.close(writing)
    with open(reading, "rb") as answer:
        told: dict[str, object] = json.load(answer)
    os.waitpid(pid, 0)
    assert told.get("ok"), told
    return told


# --- on each kind


@check
def the_kind_is_found(disk: Disk) -> None:
    assert disk.quota.kind == disk.kind
    assert quota.told(disk.layers) == (True, f"project quotas of {disk.kind}", "")


@check
def bytes_hold(disk: Disk) -> None:
    top, project = disk.top(20 * MIB, None)
    written = disk.boxed(top, lambda: fill("/big", 40))
    assert isinstance(written, int) and 18 * MIB <= written <= 20 * MIB, written
    assert 18 * MIB <= disk.quota.used(project).bytes <= 20 * MIB


@check
def without_a_limit_it_is_counted_and_nothing_more(disk: Disk) -> None:
    top, project = disk.top(None, None)
    assert disk.boxed(top, lambda: (fill("/big", 40), bomb(1000))) == [40 * MIB, 1000]
    used = disk.quota.used(project)
    assert 40 * MIB <= used.bytes < 42 * MIB and 1001 <= used.inodes < 1020, used


@check
def inodes_hold(disk: Disk) -> None:
    top, project = disk.top(None, 400)
    made = disk.boxed(top, lambda: bomb(1000))
    assert isinstance(made, int) and 380 <= made < 400, made
    assert disk.quota.used(project).inodes == 400


@check
def directories_deep_down_count_too(disk: Disk) -> None:
    top, _ = disk.top(4 * MIB, None)

    def deep() -> int:
        os.makedirs("/a/b/c/d")
        return fill("/a/b/c/d/big", 10)

    written = disk.boxed(top, deep)
    assert isinstance(written, int) and written <= 4 * MIB, written


@check
def copies_from_layers_below_count(disk: Disk) -> None:
    top, project = disk.top(20 * MIB, None)

    def write_to_both() -> None:
        os.close(os.open("/small", os.O_WRONLY))
        refused(lambda: os.open("/large", os.O_WRONLY), *FULL)

    disk.boxed(top, write_to_both)
    assert MIB <= disk.quota.used(project).bytes < 3 * MIB


@check
def holes_are_free_and_what_is_reserved_is_not(disk: Disk) -> None:
    top, _ = disk.top(20 * MIB, None)

    def try_both() -> None:
        with open("/holes", "wb") as file:
            file.truncate(1 << 40)
        with open("/reserved", "wb") as file:
            refused(lambda: os.posix_fallocate(file.fileno(), 0, 40 * MIB), *FULL)

    disk.boxed(top, try_both)


@check
def df_tells_the_limit(disk: Disk) -> None:
    top, _ = disk.top(20 * MIB, 500)

    def df() -> tuple[int, int]:
        found = os.statvfs("/")
        return found.f_blocks * found.f_frsize, found.f_files

    assert disk.boxed(top, df) == [20 * MIB, 500]


@check
def a_full_top_is_mounted_with_its_limits_lifted_only(disk: Disk) -> None:
    """Full twice over: of a top that has just been filled the mount finds what the last one's mark has left free. What
    the kernel cannot make in the work directory makes the whole overlay one that is only read."""
    top, project = disk.top(4 * MIB, 600)
    disk.boxed(top, lambda: (bomb(1000), fill("/bomb-0", 10)))
    before = disk.quota.used(project)
    assert before.inodes == 600 and before.bytes > 4 * MIB - 65536, before
    disk.quota.hold(project, 2 * MIB, 300)
    refused(lambda: disk.boxed(top, lambda: os.unlink("/bomb-1"), lift=False), errno.EROFS, *FULL)  # why it is lifted

    def delete() -> None:
        refused(lambda: os.mkdir("/more"), *FULL)
        os.unlink("/bomb-1")

    disk.boxed(top, delete)
    after = disk.quota.used(project)
    assert (after.most_bytes, after.most_inodes) == (2 * MIB, 300)


@check
def a_full_vm_can_delete_and_then_write(disk: Disk) -> None:
    top, _ = disk.top(4 * MIB, 300)
    disk.boxed(top, lambda: fill("/big", 10))

    def delete() -> int:
        os.unlink("/big")
        os.unlink("/large")  # of the image: a whiteout, which is an inode
        return fill("/again", 2)

    assert disk.boxed(top, delete) == 2 * MIB


@check
def limits_change_at_once(disk: Disk) -> None:
    top, project = disk.top(4 * MIB, None)
    told, tell = os.pipe()
    go, let_go = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(let_go)

            def live() -> int:
                fill("/first", 10)
                os.write(tell, b"x")
                os.read(go, 1)
                return fill("/second", 3)

            written = disk.boxed(top, live)
            status = 0 if written == 3 * MIB else 2
        finally:
            os._exit(status)
    os.close(tell)
    os.close(go)
    assert os.read(told, 1)
    disk.quota.hold(project, 9 * MIB, None)
    os.write(let_go, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    disk.quota.hold(project, 2 * MIB, None)  # below what is used
    assert disk.boxed(top, lambda: fill("/third", 1)) == 0
    disk.quota.hold(project, 0, 0)  # nothing left is not no limit
    used = disk.quota.used(project)
    assert (used.most_bytes, used.most_inodes) == (quota.LEAST_BYTES, quota.LEAST_INODES)


@check
def root_in_a_box_cannot_leave_its_project(disk: Disk) -> None:
    top, _ = disk.top(4 * MIB, None)

    def leave() -> None:
        os.mkdir("/d")
        for path in ("/", "/d"):
            fd = os.open(path, os.O_RDONLY)
            refused(lambda fd=fd: quota.set_project(fd, 77), *not_allowed)  # type: ignore[misc]
            refused(lambda fd=fd: quota.set_project(fd, 0, inherit=False), *not_allowed)  # type: ignore[misc]
            refused(lambda fd=fd: quota.set_limits(fd, quota.FIRST_PROJECT, 0, 0), *not_allowed)  # type: ignore[misc]
        with open("/f", "w") as file:
            xattr = struct.pack("5I8x", 0, 0, 0, 77, 0)
            refused(lambda: fcntl.ioctl(file, 0x401C5820, xattr), *not_allowed)

    not_allowed = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EOPNOTSUPP)
    disk.boxed(top, leave)
    written = disk.boxed(top, lambda: fill("/big", 10))
    assert isinstance(written, int) and written <= 4 * MIB


@check
def root_outside_can_change_it(disk: Disk) -> None:
    """The probe of the check before: the calls are right."""
    directory = disk.place / "mine"
    directory.mkdir()
    fd = os.open(directory, os.O_RDONLY)
    quota.set_project(fd, 77)
    assert quota.project_of(fd) == (77, True)
    quota.set_limits(fd, 77, MIB, 10)
    assert quota.usage(fd, 77).most_bytes == MIB
    quota.set_limits(fd, 77, 0, 0)
    os.close(fd)


@check
def what_is_used_is_known_at_a_seal(disk: Disk) -> None:
    top, project = disk.top(50 * MIB, None)
    disk.boxed(top, lambda: fill("/data", 10))
    used = disk.quota.used(project)
    assert 10 * MIB <= used.bytes < 11 * MIB and used.most_bytes == 50 * MIB, used
    os.rename(disk.layers / top, disk.layers / (sealed := new_id()))
    disk.quota.clear(project)
    after = disk.quota.used(project)
    assert after.bytes == used.bytes and after.most_bytes == 0, after
    with open(disk.layers / sealed / "upper" / "data", "rb") as file:
        assert file.read(3) == b"xxx"


@check
def ids_and_limits_survive(disk: Disk) -> None:
    """A mount, another zygote: the file system is all the record there is."""
    top, project = disk.top(4 * MIB, 300)
    os.close(disk.fd)
    subprocess.run(["umount", disk.place], check=True)
    subprocess.run(["mount", "-o", "prjquota", KINDS[disk.kind], disk.place], check=True)
    disk.fd = os.open(disk.layers, os.O_RDONLY | os.O_DIRECTORY)
    disk.quota = quota.Quota(disk.fd)
    used = disk.quota.used(project)
    assert (used.most_bytes, used.most_inodes) == (4 * MIB, 300)
    assert disk.quota.prepare_top(top, 5 * MIB, 300) == project
    assert disk.quota.used(project).most_bytes == 5 * MIB
    others = {disk.top(None, None)[1] for _ in range(20)}
    assert len(others) == 20 and project not in others


@check
def two_servers_at_once_give_out_different_ids(disk: Disk) -> None:
    each = 150
    places = [disk.place / "one", disk.place / "two"]
    children = []
    for place in places:
        place.mkdir()
        if (pid := os.fork()) == 0:
            status = 1
            try:
                fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
                quotas = quota.Quota(fd)
                for number in range(each):
                    os.mkdir(place / str(number))
                    quotas.prepare(os.open(place / str(number), os.O_RDONLY), MIB, None)
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    found = set()
    for directory in (child for place in places for child in place.iterdir()):
        fd = os.open(directory, os.O_RDONLY)
        found.add(quota.project_of(fd)[0])
        os.close(fd)
    assert len(found) == 2 * each


@check
def an_id_is_free_when_nothing_has_it_any_more(disk: Disk) -> None:
    top, project = disk.top(4 * MIB, None)
    (disk.layers / top / "upper" / "kept").write_bytes(b"x" * MIB)
    os.link(disk.layers / top / "upper" / "kept", disk.layers / "kept")  # as merged layers do
    job(disk, kind="remove", layers=[top])
    disk.quota.clear(project)
    assert disk.quota.used(project).inodes == 1
    other, another = disk.top(None, None)
    assert another != project, "what a merged layer has kept would count to it"
    os.unlink(disk.layers / "kept")
    job(disk, kind="remove", layers=[other])
    for ident in (project, another):
        wait_until(lambda ident=ident: disk.quota.used(ident) == quota.Usage())  # type: ignore[misc]
        disk.quota.clear(ident)
    assert disk.top(None, None)[1] == min(project, another)
    refused_value(lambda: disk.quota.clear(77))


@check
def limits_of_others_are_left_alone(disk: Disk) -> None:
    theirs = disk.quota._next
    quota.set_limits(disk.fd, theirs, MIB, 0)
    assert disk.top(None, None)[1] != theirs
    assert disk.quota.used(theirs).most_bytes == MIB
    quota.set_limits(disk.fd, theirs, 0, 0)


@check
def a_top_from_before_is_refused(disk: Disk) -> None:
    top = new_id()
    prepare_top(disk.fd, top)
    refused(lambda: disk.quota.prepare_top(top, MIB, None), errno.ENOTEMPTY)
    os.rmdir(disk.layers / top / "upper")
    os.rmdir(disk.layers / top / "work")
    disk.quota.prepare_top(top, MIB, None)


@check
def a_directory_of_layers_with_a_project_is_refused(disk: Disk) -> None:
    place = disk.place / "owned"
    place.mkdir()
    fd = os.open(place, os.O_RDONLY)
    quota.set_project(fd, 78)
    try:
        quota.Quota(fd)
    except quota.NoQuota as error:
        assert "project of its own" in error.why
    else:
        raise AssertionError("it was taken")
    top, _ = disk.top(None, None)
    refused(lambda: os.rename(disk.layers / top, place / top), errno.EXDEV)  # the reason
    quota.set_project(fd, 0, inherit=False)
    quota.Quota(fd)


@check
def jobs_on_layers_cross_projects(disk: Disk) -> None:
    """Copies, merges (which link) and removals move files out of tops, and into directories of no project."""
    tops = []
    for number in range(2):
        top, project = disk.top(10 * MIB, None)
        disk.boxed(top, lambda number=number: fill(f"/f{number}", 2))  # type: ignore[misc]
        disk.quota.clear(project)
        tops.append(top)
    copy = new_id()
    told = job(disk, kind="copy", source=tops[0], target=copy, phase=1)
    job(disk, kind="copy", source=tops[0], target=copy, phase=2, since=told["since"])
    merged = new_id()
    told = job(disk, kind="merge", layers=[["data", tops[1]], ["data", copy]], target=merged)
    assert told["links"] == 2
    assert sorted(os.listdir(disk.layers / merged / "upper")) == ["f0", "f1"]
    job(disk, kind="remove", layers=[*tops, copy])
    assert sorted(os.listdir(disk.layers / merged / "upper")) == ["f0", "f1"]
    job(disk, kind="remove", layers=[merged])


@check
def what_it_costs(disk: Disk) -> None:
    """No bar: the emulated machine's microseconds are told, for the curious."""
    tops = [disk.layers / new_id() for _ in range(200)]
    for top in tops:
        os.mkdir(top)
    fds = [os.open(top, os.O_RDONLY) for top in tops]
    start = time.perf_counter()
    projects = [disk.quota.prepare(fd, 100 * MIB, 10_000) for fd in fds]
    prepared = time.perf_counter()
    for project in projects:
        disk.quota.used(project)
    asked = time.perf_counter()
    for fd in fds:
        os.close(fd)
    took = {"prepare": (prepared - start) / 200, "used": (asked - prepared) / 200}
    say({"note": f"{disk.kind}: " + ", ".join(f"{name} {seconds * 1e6:.0f} µs" for name, seconds in took.items())})


# --- the pool


@once
def a_file_system_without_quotas_says_so() -> None:
    active, why, fix = quota.told(DATA / "layers")
    assert not active and "without project quotas" in why and "boxwood storage init" in fix, (why, fix)
    active, why, fix = quota.told(Path("/tmp/not/there"))
    assert not active and "XFS and ext4" in why, why


@once
def a_pool_is_made_and_limits_tops() -> None:
    found = asked("init", "--size", "1")
    assert found["quotas"] == "xfs" and found["mounted"] and found["pool"] == str(DATA / "pool.xfs"), found
    assert 900 * MIB < found["size"] <= 1024 * MIB and found["free"] > 800 * MIB
    made = os.stat(DATA / "pool.xfs")
    assert made.st_blocks * 512 >= 1 << 30 and made.st_mode & 0o777 == 0o600, "it is allocated, and root's"
    assert os.stat(DATA / "layers").st_mode & 0o777 == 0o700
    disk = Disk("xfs", DATA)
    top, _ = disk.top(4 * MIB, None)
    assert disk.boxed(top, lambda: fill("/big", 10)) != 10 * MIB
    shutil.rmtree(disk.layers / top)
    os.close(disk.fd)


@once
def a_pool_is_made_once() -> None:
    before = os.stat(DATA / "pool.xfs")
    assert asked("init", "--size", "1")["mounted"]
    assert os.stat(DATA / "pool.xfs").st_ino == before.st_ino


@once
def a_pool_comes_and_goes_with_the_engine() -> None:
    storage.detach(DATA)
    assert not os.path.ismount(DATA / "layers") and not loops()
    found = asked("show")
    assert not found["mounted"] and "boxwood up" in found["fix"]
    (DATA / "layers/stray").touch()
    try:
        storage.attach(DATA)
    except EngineUnavailable as error:
        assert "not empty" in str(error)
    else:
        raise AssertionError("it was mounted over what lay there")
    (DATA / "layers/stray").unlink()
    storage.attach(DATA)
    storage.attach(DATA)
    assert asked("show")["mounted"] and len(loops()) == 1
    with open(DATA / "layers/held", "w"):
        storage.detach(DATA)
        assert os.path.ismount(DATA / "layers"), "what is in use stays"
    os.unlink(DATA / "layers/held")
    storage.detach(DATA)


@once
def a_pool_can_grow() -> None:
    """As docs/storage.md says."""
    subprocess.run(["fallocate", "-l", str(1200 * MIB), DATA / "pool.xfs"], check=True)
    storage.attach(DATA)
    before = os.statvfs(DATA / "layers")
    subprocess.run(["xfs_growfs", DATA / "layers"], check=True, stdout=subprocess.DEVNULL)
    after = os.statvfs(DATA / "layers")
    assert (after.f_blocks - before.f_blocks) * after.f_frsize > 150 * MIB
    storage.detach(DATA)


@once
def a_pool_is_not_made_over_layers_or_beside_a_server() -> None:
    place = DATA / "other"
    (place / "layers" / new_id()).mkdir(parents=True)
    assert "holds layers" in asked("init", "--size", "1", data=place)["error"]
    shutil.rmtree(place / "layers")
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "a server runs" in asked("init", "--size", "1", data=place)["error"]
    assert "too much" in asked("init", "--size", "900", data=place)["error"]
    assert sorted(os.listdir(place)) == ["layers", "lock"]
    xfs = DISKS["xfs"].place / "boxwood"
    assert asked("init", data=xfs)["pool"] is None, "it lies on quotas"


@once
def an_engine_lives_on_a_pool() -> None:
    asyncio.run(_live())


async def _live() -> None:
    image = make_image()
    engine = HostEngine(DATA, IMAGES, network=False)
    await engine.start()
    assert os.path.ismount(DATA / "layers")
    assert engine.free_disk() < 1200 * MIB < shutil.disk_usage(DATA).free
    told = {one.name: (one.active, one.why) async for one in engine.features()}
    assert told["disk limit"] == (True, "each VM with disk_mib is limited by project quotas of xfs"), told
    top = new_id()
    vm = await Vm.boot(engine, image, top, Limits())
    assert await vm.run("echo kept > /note; cat /note") == "kept\n"
    await engine.shutdown()
    assert not os.path.ismount(DATA / "layers") and not loops()
    await engine.start()
    assert (DATA / "layers" / top / "upper" / "note").read_text() == "kept\n"
    await engine.shutdown()


@once
def an_engine_limits_disks_by_quotas() -> None:
    asyncio.run(_limited())


async def _limited() -> None:
    image, top, copy = make_image(), new_id(), new_id()
    engine = HostEngine(DATA, IMAGES, network=False)
    await engine.start()
    assert engine.disk_problem() == "" and await engine.disk_capacity(top) is None
    vm = await Vm.boot(engine, image, top, Limits(disk=8 * MIB))
    filling = "dd if=/dev/zero of=/big bs=64k count=400 2>/dev/null; wc -c < /big"
    assert 7 * MIB < int(await vm.run(filling)) <= 8 * MIB
    assert await vm.run("touch /more 2>/dev/null; echo still here") == "still here\n"
    await engine.change(vm.box, "testbox", Limits(disk=16 * MIB))
    assert 15 * MIB < int(await vm.run(filling)) <= 16 * MIB
    try:
        await engine.change(vm.box, "testbox", Limits(disk=4 * MIB))
    except EngineError as error:
        assert "holds 16 MiB" in str(error), error
    else:
        raise AssertionError("the limit is below what is used")
    await engine.copy_top(vm.box, top, copy)
    for layer in (top, copy):
        assert 15 * MIB < (await engine.contents(layer)).bytes < 17 * MIB
    assert not await engine.in_files() and (await engine.disk_capacity(top) or 0) > 1 << 40
    await vm.box.kill()
    vm = await Vm.boot(engine, image, top, Limits(disk=2 * MIB))
    assert await vm.run("echo x > /more || rm /big /bin/env; echo kept > /note; cat /note") == "kept\n"
    await vm.box.kill()
    fd = os.open(DATA / "layers" / top, os.O_RDONLY)
    project = quota.project_of(fd)[0]
    os.close(fd)
    await engine.remove([top, copy])
    layers = os.open(DATA / "layers", os.O_RDONLY)
    wait_until(lambda: quota.usage(layers, project) == quota.Usage())
    os.close(layers)
    await engine.shutdown()
    assert not os.path.ismount(DATA / "layers") and not loops()


def make_image() -> str:
    """An image that is busybox."""
    image = new_id()
    programs = IMAGES / image / "upper" / "bin"
    programs.mkdir(parents=True)
    shutil.copy("/bin/busybox", programs)
    for name in ("sh", "cat", "echo", "env", "true", "dd", "wc", "rm", "touch"):
        os.symlink("busybox", programs / name)
    for name in ("proc", "dev", "run", "sys", "tmp", "root"):
        (programs.parent / name).mkdir()
    for directory in (programs.parent, *programs.parent.iterdir()):
        directory.chmod(0o755)
    return image


class Vm:
    """A box with one session."""

    def __init__(self, box: Box) -> None:
        self.box, self._session = box, new_id()
        self._said, self._over = bytearray(), asyncio.Event()

    @staticmethod
    async def boot(engine: HostEngine, image: str, top: str, limits: Limits) -> Vm:
        stack = Stack((image,), top, frozenset({image}))
        vm = Vm(await engine.boot(BoxSpec(new_id(), stack, limits=limits, network=False)))
        vm.box.listen(vm)
        await vm.box.open_session(SessionSpec(vm._session))
        return vm

    async def run(self, command: str) -> str:
        self._said.clear()
        self._over.clear()
        await self.box.start_run(RunSpec(new_id(), self._session, command.encode()), self)
        async with asyncio.timeout(SECONDS):
            await self._over.wait()
        return self._said.decode()

    def state(self, session_id: str, cwd: str, env: dict[str, str], state: bytes) -> None:
        return None

    def output(self, stream: int, offset: int, data: bytes) -> None:
        if stream == 1:
            self._said += data

    def finished(self, end: RunEnd) -> None:
        self._over.set()


def asked(*words: str, data: Path = DATA) -> dict[str, object]:
    """What `boxwood storage` is told."""
    command = [sys.executable, "-I", "-m", "boxwood.engine.storage", *words, "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


def loops() -> list[str]:
    return [str(file) for file in Path("/sys/block").glob("loop*/loop/backing_file")]


def refused_value(work: Callable[[], object]) -> None:
    try:
        work()
    except ValueError:
        return
    raise AssertionError("it went through")


def wait_until(condition: Callable[[], bool]) -> None:
    """XFS frees what was deleted a moment later."""
    for _ in range(600):
        if condition():
            return
        os.sync()
        time.sleep(0.1)
    raise AssertionError("it has not come to pass")


# --- the script


def say(line: object) -> None:
    print(json.dumps(line), flush=True)


def too_long(*_: object) -> None:
    raise TimeoutError(f"it takes longer than {SECONDS} s")


def main() -> None:
    os.umask(0o077)
    subprocess.run(["mkfs.xfs", "-q", KINDS["xfs"]], check=True)
    subprocess.run(["mkfs.ext4", "-q", "-O", "project,quota", "-E", "quotatype=prjquota", KINDS["ext4"]], check=True)
    subprocess.run(["mkfs.ext4", "-q", PLAIN], check=True)
    Path("/plain").mkdir()
    subprocess.run(["mount", PLAIN, "/plain"], check=True)
    DATA.mkdir(mode=0o700)
    signal.signal(signal.SIGALRM, too_long)
    for kind, device in KINDS.items():
        place = Path("/quotas", kind)
        place.mkdir(parents=True)
        subprocess.run(["mount", "-o", "prjquota", device, place], check=True)
        DISKS[kind] = Disk(kind, place)
    for name, function in CHECKS.items():
        signal.alarm(SECONDS)
        try:
            function()
            say({"check": name, "failed": ""})
        except BaseException:
            say({"check": name, "failed": traceback.format_exc()})
    signal.alarm(0)


if __name__ == "__main__":
    main()
