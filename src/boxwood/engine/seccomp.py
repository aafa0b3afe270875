"""The system calls of a box: an allow-list as a BPF program, built in the server and handed to the zygote as bytes.

In the spirit of the containers' default, but stricter: no io_uring, bpf, keys, userfaultfd or perf, no namespace is
made or entered, nothing is mounted. What is not named here answers EPERM; what this list is too old to know, another
architecture's calls, and clone3 (whose flags a filter cannot see) answer ENOSYS, on which C libraries fall back.

libseccomp compares 64 bits and cannot say "unless" of an argument. The kernel cuts an int argument to 32 bits, so
comparisons here are masked, and what must be refused by its argument stands in a few instructions before libseccomp's.
"""

from __future__ import annotations

import errno
import importlib
import platform
import struct
import tempfile
from types import ModuleType

from boxwood.engine.api import EngineUnavailable

FILES = """
access chdir chmod chown chroot close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
fallocate fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fremovexattr
fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents getdents64 getxattr getxattrat ioctl lchown lgetxattr
link linkat listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat mkdir mkdirat mknod mknodat newfstatat
open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
removexattr removexattrat rename renameat renameat2 rmdir sendfile setxattr setxattrat splice stat statfs statx symlink
symlinkat sync sync_file_range syncfs tee truncate umask unlink unlinkat utime utimensat utimes vmsplice write writev
cachestat
"""
WAITING = """
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2
inotify_add_watch inotify_init inotify_init1 inotify_rm_watch pipe pipe2 poll ppoll pselect6 select signalfd signalfd4
timerfd_create timerfd_gettime timerfd_settime
"""
MEMORY = """
brk get_mempolicy madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap
mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages
"""
PROCESSES = """
arch_prctl capget capset execve execveat exit exit_group fork futex futex_requeue futex_wait futex_waitv futex_wake
get_robust_list get_thread_area getcpu getegid geteuid getgid getgroups getpgid getpgrp getpid getppid getpriority
getresgid getresuid getrlimit getrusage getsid gettid getuid ioprio_get ioprio_set kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self pause pidfd_open pidfd_send_signal prctl process_mrelease
process_vm_readv process_vm_writev ptrace restart_syscall rseq rt_sigaction rt_sigpending rt_sigprocmask
rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_get_priority_max
sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp set_robust_list set_thread_area
set_tid_address setfsgid setfsuid setgid setgroups setpgid setpriority setregid setresgid setresuid setreuid setrlimit
setsid setuid sigaltstack sysinfo tgkill times tkill uname vfork wait4 waitid
"""
TIME = """
adjtimex alarm clock_adjtime clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time
timer_create timer_delete timer_getoverrun timer_gettime timer_settime
"""
MESSAGES = """
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop
semtimedop shmat shmctl shmdt shmget
"""
NETWORK = """
accept accept4 bind connect getpeername getrandom getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg
sendmsg sendto setsockopt shutdown socketpair
"""
# io_setup: fs.aio-max-nr is one bound for the whole host, which one box could use up.
ABSENT = "clone3 io_setup statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules"

# Known to this list but perhaps not to the installed libseccomp; the same numbers on every architecture since 424.
NEW = {
    "process_madvise": 440, "epoll_pwait2": 441, "landlock_create_ruleset": 444, "landlock_add_rule": 445,
    "landlock_restrict_self": 446, "memfd_secret": 447, "process_mrelease": 448, "futex_waitv": 449, "cachestat": 451,
    "fchmodat2": 452, "map_shadow_stack": 453, "futex_wake": 454, "futex_wait": 455, "futex_requeue": 456,
    "statmount": 457, "listmount": 458, "lsm_get_self_attr": 459, "lsm_set_self_attr": 460, "lsm_list_modules": 461,
    "mseal": 462, "setxattrat": 463, "getxattrat": 464, "listxattrat": 465, "removexattrat": 466,
}  # fmt: skip
NEWEST = max(NEW.values())

# CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}; for unshare also NEWTIME, whose bit is part of clone's exit signal.
NAMESPACES = 0x7E020000
NEWTIME = 0x80
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}
NETLINK_PROTOCOLS = (0, 4, 9)  # ROUTE, SOCK_DIAG, AUDIT (answers that there is none, which PAM wants to hear)
# PER_LINUX, PER_LINUX32, UNAME26 with both, no address randomisation (debuggers, sanitizers), and the question "which?"
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0x40000, 0xFFFFFFFF)
INJECTING_IOCTLS = {"TIOCSTI": 0x5412, "TIOCLINUX": 0x541C}

_INT = 0xFFFFFFFF
_SELF = -10000 & _INT  # in place of a pidfd
_IOCTL = {"x86_64": 16, "aarch64": 29}
# struct seccomp_data: the call's number, the lower half of its second argument (both architectures: little-endian)
_AT_NUMBER, _AT_ARGUMENT_1 = 0, 24
_LOAD, _JUMP_GREATER, _JUMP_EQUAL, _RETURN = 0x20, 0x25, 0x15, 0x06
_RET_ERRNO = 0x00050000


def program() -> bytes:
    """The filter as an array of struct sock_filter, for this machine's architecture. Raises EngineUnavailable."""
    machine = platform.machine()
    if machine not in _IOCTL:
        raise EngineUnavailable(f"Boxwood knows x86_64 and aarch64, not {machine}")
    sc = _libseccomp()
    filter_ = sc.SyscallFilter(sc.ERRNO(errno.EPERM))
    filter_.set_attr(sc.Attr.ACT_BADARCH, sc.ERRNO(errno.ENOSYS))
    filter_.set_attr(sc.Attr.CTL_OPTIMIZE, 2)  # a binary tree, not a list
    for name in f"{FILES} {WAITING} {MEMORY} {PROCESSES} {TIME} {MESSAGES} {NETWORK}".split():
        _add(sc, filter_, sc.ALLOW, name)
    for name in ABSENT.split():
        _add(sc, filter_, sc.ERRNO(errno.ENOSYS), name)
    _add_conditional(sc, filter_)
    with tempfile.TemporaryFile() as out:
        filter_.export_bpf(out)
        out.seek(0)
        return _refusals(_IOCTL[machine]) + out.read()


def _libseccomp() -> ModuleType:
    try:
        return importlib.import_module("pyseccomp")  # looks for the library when it is imported
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineUnavailable(f"libseccomp is missing ({error}): install it (Debian, Ubuntu: libseccomp2)") from None


def _add(sc: ModuleType, filter_: object, action: int, name: str, *arguments: object) -> None:
    number = sc.resolve_syscall(sc.Arch.NATIVE, name)
    if number < 0:  # not raised: unknown to libseccomp, or not a call of this architecture
        number = NEW.get(name, -1)
    if number >= 0:
        filter_.add_rule(action, number, *arguments)  # type: ignore[attr-defined]


def _add_conditional(sc: ModuleType, filter_: object) -> None:
    def allow(name: str, index: int, mask: int, value: int) -> None:
        _add(sc, filter_, sc.ALLOW, name, sc.Arg(index, sc.MASKED_EQ, mask, value))

    allow("clone", 0, NAMESPACES, 0)
    allow("unshare", 0, NAMESPACES | NEWTIME, 0)
    for family in FAMILIES.values():
        if family != FAMILIES["AF_NETLINK"]:
            allow("socket", 0, _INT, family)
    for protocol in NETLINK_PROTOCOLS:  # others tell of the host: its devices come and go by NETLINK_KOBJECT_UEVENT
        family = sc.Arg(0, sc.MASKED_EQ, _INT, FAMILIES["AF_NETLINK"])
        _add(sc, filter_, sc.ALLOW, "socket", family, sc.Arg(2, sc.MASKED_EQ, _INT, protocol))
    for persona in PERSONALITIES:
        allow("personality", 0, _INT, persona)
    allow("process_madvise", 0, _INT, _SELF)  # one's own memory, as madvise; much of it at once (template.py)
    # One's own limits, or only reading: root in a box has the agent's uid and could starve it.
    allow("prlimit64", 0, _INT, 0)
    _add(sc, filter_, sc.ALLOW, "prlimit64", sc.Arg(2, sc.EQ, 0))


def _refusals(ioctl: int) -> bytes:
    """What comes before libseccomp's program. Another architecture's call may end here: it would anyway."""
    injecting = list(INJECTING_IOCTLS.values())
    last = len(injecting) - 1
    return b"".join(
        (
            _instruction(_LOAD, _AT_NUMBER),
            _instruction(_JUMP_GREATER, NEWEST, 0, 1),
            _instruction(_RETURN, _RET_ERRNO | errno.ENOSYS),
            _instruction(_JUMP_EQUAL, ioctl, 0, len(injecting) + 2),
            _instruction(_LOAD, _AT_ARGUMENT_1),
            *(_instruction(_JUMP_EQUAL, cmd, last - at, 0 if at < last else 1) for at, cmd in enumerate(injecting)),
            _instruction(_RETURN, _RET_ERRNO | errno.EPERM),
        )
    )


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
