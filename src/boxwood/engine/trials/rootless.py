"""What this host gives to the boxes of a server without root: the doctor's trials for an unprivileged user.

Each is made in a forked child that enters a user namespace as the zygote does.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from boxwood.engine import box, idmap, seccomp
from boxwood.engine import kernel as k
from boxwood.engine.api import Limits
from boxwood.engine.cgroups import delegated
from boxwood.engine.idmap import IdMap, NoSubordinateIds
from boxwood.engine.network import leaving
from boxwood.engine.onerange import SharedRanges
from boxwood.engine.overlay import Places, attach_views, by_descriptor, mount_root, prepare_top
from boxwood.engine.ranges import BoxRange
from boxwood.engine.trials.common import (
    DISK,
    FREEZER,
    NAMESPACES,
    NETWORK,
    Check,
    Scratch,
    Wrong,
    failure_of,
    kernel_release,
    seccomp_filter,
    tried,
    try_network,
)
from boxwood.engine.ulid import new_ulid

SUBORDINATE = "subordinate ids"
_SYSCTLS = Path("/proc/sys")
_STATUS = Path("/proc/self/status")
_PROCESSES = 3  # that a trial lets a box have


def try_all(data: Path, images: Path) -> list[Check]:
    """Each in a forked child."""
    release = kernel_release()
    if not release.active:
        return [release]
    user = failure_of(lambda: idmap.enter(idmap.own()))
    found = [release, _root(), tried("user namespace", user, "root in a box is nobody but you outside", obstacle(user))]
    if user:
        return found
    more = subordinate_ids()
    ids = idmap.subordinate() if more.active else idmap.own()
    found += [more, *_namespaces(ids)]
    with Scratch(data) as layers, Scratch(images) as golden:
        steps = _Steps(ids, layers, golden)
        overlay, kernel = failure_of(steps.overlay), failure_of(steps.prepare)
        failure_of(lambda: _in(ids, lambda: shutil.rmtree(steps.top)))  # not to be removed from out here
    found += [
        tried("overlay", overlay, "a VM is a stack of layers, whatever it holds", _OVERLAY),
        tried(
            "nodev, nosuid",
            overlay,
            "what a user namespace mounts knows no devices, and setuid makes nobody of the host",
        ),
        tried("kernel file systems", kernel, "proc, sysfs, devices: each box has its own", _PROC),
    ]
    found += [seccomp_filter(lambda work: _in(ids, work)), _process_bound(ids), *_cgroups()]
    return [*found, _network(ids), *_what_takes_root()]


_OVERLAY = (
    "the kernel must make overlays in user namespaces (≥ 5.11), on a file system with user.* attributes: ext4, XFS, "
    "btrfs; `modprobe overlay` as root if the module is not loaded"
)
_PROC = (
    "in a container whose /proc or /sys is masked nobody but root may mount others: run it outside, or with "
    "`--security-opt systempaths=unconfined` (docker, podman)"
)


def ids_of(found: list[Check]) -> IdMap:
    """Those that a zygote is to have, as the trials have shown."""
    if any(check.name == SUBORDINATE and check.active for check in found):
        return idmap.subordinate()
    return idmap.own()


def obstacle(failure: str, sysctls: Path = _SYSCTLS, status: Path = _STATUS) -> str:
    """How to have user namespaces where they are refused: by the first setting that explains it."""
    if not failure:
        return ""
    if _setting(sysctls / "kernel/unprivileged_userns_clone") == "0":
        return "as root: sysctl -w kernel.unprivileged_userns_clone=1"
    if _setting(sysctls / "user/max_user_namespaces") == "0":
        return "as root: sysctl -w user.max_user_namespaces=10000"
    if _setting(sysctls / "kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give Boxwood's Python an AppArmor "
            "profile with `userns,`"
        )
    if any(line.split() == ["Seccomp:", "2"] for line in _setting(status).splitlines()):
        return (
            "a seccomp filter lies on this process, a container's most likely, and may forbid it: run it outside, or "
            "with `--security-opt seccomp=unconfined` (docker, podman)"
        )
    return "as root: look at sysctl user.max_user_namespaces and at the host's security modules; or run it as root"


def _setting(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _root() -> Check:
    text = f"runs as uid {os.geteuid()}, in a user namespace of that user: see docs/rootless.md"
    return Check("root", False, text, "for what takes root: `sudo boxwood up`", required=False)


def subordinate_ids() -> Check:
    lacking = "boxes have one user, root: apt, dpkg, chown and other users fail in them"
    fix = "as root: apt install uidmap, and usermod --add-subuids 100000-165535 --add-subgids 100000-165535 YOU"
    check = Check(SUBORDINATE, False, "", fix, required=False)
    try:
        ids = idmap.subordinate()
    except NoSubordinateIds as error:
        return replace(check, why=f"{error}: {lacking}")
    if failure := failure_of(lambda: idmap.enter(ids)):
        return replace(check, why=f"{failure}: {lacking}")
    return replace(check, active=True, why=f"boxes have {ids.count} users and groups", fix="")


def _namespaces(ids: IdMap) -> list[Check]:
    found = []
    for name, (flag, file) in NAMESPACES.items():
        failure = failure_of(lambda flag=flag: _in(ids, lambda: k.unshare(flag)))  # type: ignore[misc]
        fix = f"the kernel lacks it or a policy forbids it: is /proc/self/ns/{file} there?"
        found.append(tried(f"{name} namespace", failure, "each box has its own", fix))
    return found


def _in(ids: IdMap, work: Callable[[], object]) -> None:
    idmap.enter(ids)
    work()


class _Steps:
    """How far towards a box this host goes, by the code that makes boxes."""

    def __init__(self, ids: IdMap, layers: Path, images: Path) -> None:
        self._ids, self._layers, self._images = ids, layers, images
        for name in ("dev", "stage"):
            (layers / name).mkdir()
        self._layer, self.top = new_ulid(), layers / new_ulid()
        (layers / self._layer / "upper").mkdir(parents=True)
        (layers / self._layer / "upper/low").write_text("low")

    def _range(self) -> BoxRange:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        layers, images = os.open(self._layers, flags), os.open(self._images, flags)
        return SharedRanges(self._ids, layers, images, self._layers / "dev").take()

    def _ground(self) -> box.Ground:
        places = None if by_descriptor() else Places(str(self._layers), str(self._images))
        return box.Ground(self._range(), (), str(self._layers / "stage"), seccomp.program(), places)

    def prepare(self) -> None:
        idmap.enter(self._ids)
        self._alone(self._ground())

    def overlay(self) -> None:
        idmap.enter(self._ids)
        prepare_top(os.open(self._layers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), self.top.name)
        k.mount("stage", str(self._layers / "stage"), "tmpfs")
        os.chdir(self._layers / "stage")
        os.mkdir("root")
        range_ = self._range()
        if not by_descriptor():
            attach_views(range_, Places(str(self._layers), str(self._images)))
        mount_root([("data", self._layer)], self.top.name, range_, by_path=not by_descriptor())
        os.unlink("root/low")  # leaves a whiteout
        with open("root/new", "w") as file:
            file.write("new")
        if sorted(os.listdir("root")) != ["new"]:
            raise Wrong("what was deleted is still there")

    def _alone(self, ground: box.Ground) -> None:
        """As the first process of a process namespace."""
        step = box.Step()

        def work() -> None:
            try:
                plug = box.prepare(ground, step)
                step.name = "privileges"
                box.enter(ground, plug.pings)
            except OSError as error:
                raise Wrong(f"{step.name}: {error}") from None

        k.unshare(k.NEWPID)
        if failure := failure_of(work):
            raise Wrong(failure)


def _process_bound(ids: IdMap) -> Check:
    """In a user namespace, so that what this user runs elsewhere does not count."""

    def fill() -> None:
        k.unshare(k.NEWUSER)
        resource.setrlimit(resource.RLIMIT_NPROC, (_PROCESSES, _PROCESSES))
        started, until = 1, os.pipe()
        try:
            while started <= _PROCESSES:
                _start_child(*until)
                started += 1
        except BlockingIOError:
            return
        raise Wrong(f"{started} processes could be started where {_PROCESSES} may be")

    failure = failure_of(lambda: _in(ids, fill))
    fix = "a kernel from 5.14 on counts the processes of each user namespace"
    return tried("process limit", failure, "each user of a box has so many processes and no more", fix)


def _start_child(reading: int, writing: int) -> None:
    """It ends with its parent, who alone has this pipe's other end."""
    if os.fork() == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)


def _cgroups() -> list[Check]:
    limits = {"memory": Limits(memory_mib=64, pids=0), "cpu": Limits(vcpu=1, pids=0)}
    found = []
    for name, wanted in limits.items():
        failure = failure_of(lambda wanted=wanted: _in_group(wanted))  # type: ignore[misc]
        found.append(tried(f"cgroup {name}", failure, "boxes have limits that hold", delegated.HOW, required=False))
    failure = failure_of(lambda: _in_group(Limits(pids=0), freeze=True))
    good_for = "a VM with running processes can be forked"
    return [*found, tried(FREEZER, failure, good_for, delegated.HOW, required=False)]


def _in_group(limits: Limits, *, freeze: bool = False) -> None:
    groups, name = delegated.find(new_ulid()), new_ulid()
    try:
        directories = groups.make(name, limits)
        pid = os.fork()
        if pid == 0:
            try:
                for directory in directories:
                    Path(directory, "cgroup.procs").write_text("0")
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        if freeze:
            groups.freeze(name)
            groups.thaw(name)
    finally:
        groups.sweep()
        groups.close()


def _network(ids: IdMap) -> Check:
    """All that root's takes, in a network that we are root of, and pasta to connect that to the host's."""
    failure = leaving.missing() or failure_of(lambda: _in(ids, lambda: try_network(())))
    fix = (
        "as root: apt install passt nftables, and let users open /dev/net/tun (mode 0666); the kernel needs tun, "
        "nf_tables, nf_conntrack and veth. A server that runs takes notice after `boxwood down`"
    )
    good_for = "the internet, and nothing else, through pasta"
    if failure:
        failure = f"{failure}: boxes have their loopback alone"
    return tried(NETWORK, failure, good_for, fix, required=False)


def _what_takes_root() -> list[Check]:
    root = "run as root: `sudo boxwood up`"
    missing = {
        "uid ranges": "all boxes run with the same ids of the host: limits of one user count for all of them",
        DISK: "nobody but root may set quotas or mount a file system in a file: what VMs write has no bound of its own",
    }
    return [Check(name, False, why, root, required=False) for name, why in missing.items()]
