"""Tops of VMs on file systems with project quotas, of each kind: limits hold, ids are each one's own."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import time

from boxwood.core.ids import new_id
from boxwood.engine import quota
from boxwood.engine.overlay import prepare_top
from quotachecks.ground import FULL, KINDS, MIB, Disk, bomb, check, fill, job, refused, refused_value, say, wait_until


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
