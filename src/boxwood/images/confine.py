"""The confinement in which strangers' archives are read: nothing of the host but two descriptors and one directory."""

from __future__ import annotations

import os
import resource
import signal
import sys

from boxwood.engine import kernel

MEMORY = 2 << 30  # bytes of address space: what a decompressor may ask for
_NOBODY = 65534
_NEEDED = kernel.capability_mask("chown", "dac_override", "fowner", "fsetid")
_FLAGS = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC


def confine(target: str, helper: int | None = None) -> None:
    """Make `target` the root of this process, alone in new namespaces, and let go of all other power.

    Returns in a child that is PID 1 of its own namespace; this process waits for it, and for `helper`, a child it had
    before, and ends well if both did. Whatever is to be imported or opened by path must have been before. The target is
    mounted nosuid, nodev, noexec.
    """
    _enter_own_namespace()
    kernel.unshare(kernel.NEWNS | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWCGROUP | kernel.NEWPID)
    if pid := os.fork():
        _follow(pid, helper)
    kernel.set_death_signal(signal.SIGKILL)
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount(target, target, None, kernel.MS_BIND)
    kernel.mount(None, target, None, kernel.MS_REMOUNT | kernel.MS_BIND | _FLAGS)
    os.chdir(target)
    last = kernel.last_capability()
    kernel.pivot_here()
    limit(files=256)
    kernel.limit_bounding_set(_NEEDED, last)
    kernel.no_new_privileges()
    kernel.set_capabilities(_NEEDED)
    kernel.set_dumpable(0)
    kernel.set_death_signal(signal.SIGKILL)
    sys.path.clear()
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") == "BuiltinImporter"]


def become_nobody() -> None:
    """For a decompressor that is a program of its own: no network, no privileges, no files but its descriptors."""
    kernel.set_death_signal(signal.SIGKILL)
    root = os.geteuid() == 0
    _enter_own_namespace()
    kernel.unshare(kernel.NEWNS | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS)
    limit(files=16)
    if root:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    else:  # there is nobody else to become
        kernel.set_capabilities(0)
    kernel.no_new_privileges()


def _enter_own_namespace() -> None:
    """Who is not root gets the right to the rest in a user namespace, in which he is who he is."""
    if (uid := os.geteuid()) == 0:
        return
    gid = os.getegid()
    kernel.unshare(kernel.NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def limit(*, files: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _follow(pid: int, helper: int | None) -> None:
    """Never returns. The pipes are the child's alone: whoever reads them sees its end."""
    for fd in (0, 1):
        os.close(fd)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if helper is not None:
        helper_status = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
        status = status or helper_status
    os._exit(0 if status == 0 else 1)
