"""System calls that another process of ours makes while it stands still: ptrace, on x86-64.

Only for a process that waits for events: then nothing of it is half done, and it takes the interruption as it takes
every signal, and waits again.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import select
import signal
import struct
from contextlib import suppress
from types import TracebackType

from boxwood.engine import kernel as k

MMAP, MADVISE, PROCESS_MADVISE = 9, 28, 440
_EPOLL_WAITS = (232, 281)
_SYSCALL = b"\x0f\x05"  # the instruction
_NONE = (1 << 64) - 1  # no system call is to be begun again
_CONT, _SINGLESTEP, _GETREGS, _SETREGS, _DETACH = 7, 9, 12, 13, 17
_SETOPTIONS, _GETSIGINFO, _SEIZE, _INTERRUPT = 0x4200, 0x4202, 0x4206, 0x4207
_EXITKILL = 1 << 20  # what is half done when we die must not go on
_TRAP, _EVENT_STOP = int(signal.SIGTRAP), 128
_RED_ZONE = 128  # bytes below the stack pointer that are in use
_WALL = 0x40000000  # whoever's child it is
_SIGINFO = struct.Struct("=iiiii108x")  # of x86-64: number, errno, code, -, the sender as the receiver sees it

_NAMES = """r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base
ds es fs gs"""


class _Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulong) for name in _NAMES.split()]


class Busy(Exception):
    """It does something just now."""


class Stopped:
    """While it is entered, the process of that id stands still. `pidfd`: it is to be this one, and not another that has
    its number now. `memory`: a descriptor. Busy, OSError (it has ended, or we may not, or cannot on this machine)."""

    def __init__(self, pid: int, pidfd: int = -1) -> None:
        self._pid = pid
        self._pidfd = pidfd
        self._registers = _Registers()
        self._door = 0  # where it has the instruction
        self._postponed: list[int] = []  # signals that came meanwhile
        self._is_bound = False  # to end if we do
        self._stood = False  # already, for another reason
        self.memory = -1

    def __enter__(self) -> Stopped:
        if platform.machine() != "x86_64":
            raise OSError(errno.ENOSYS, "how to do this is known of x86-64 only")
        k.ptrace(_SEIZE, self._pid)
        try:
            k.ptrace(_INTERRUPT, self._pid)
            while (why := self._stop()) >> 8 != _EVENT_STOP:
                k.ptrace(_CONT, self._pid)
            self._stood = why & 0xFF != _TRAP
            if _has_ended(self._pidfd):
                raise ProcessLookupError(errno.ESRCH, "it has ended, and this is another")
            self._read(self._registers)
            self.memory = os.open(f"/proc/{self._pid}/mem", os.O_RDWR | os.O_CLOEXEC)
            self._door = self._registers.rip - len(_SYSCALL)
            waits = self._registers.orig_rax in _EPOLL_WAITS and self._registers.rax == _NONE + 1 - errno.EINTR
            if self._stood or not waits or os.pread(self.memory, len(_SYSCALL), self._door) != _SYSCALL:
                raise Busy
        except BaseException:
            self._let_go()
            raise
        return self

    def put(self, data: bytes) -> int:
        """Where it stays until the next `put`: on its stack, beyond what is used. At most some pages."""
        at = (self._registers.rsp - _RED_ZONE - len(data)) & ~0xF
        os.pwrite(self.memory, data, at)
        return int(at)

    def call(self, number: int, *arguments: int) -> int:
        """One system call. OSError."""
        if not self._is_bound:
            k.ptrace(_SETOPTIONS, self._pid, 0, _EXITKILL)
            self._is_bound = True
        registers = _Registers.from_buffer_copy(self._registers)
        registers.rip, registers.rax, registers.orig_rax = self._door, number, _NONE
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=False):
            setattr(registers, name, value)
        k.ptrace(_SETREGS, self._pid, 0, ctypes.addressof(registers))
        k.ptrace(_SINGLESTEP, self._pid)
        while self._stop() != _TRAP:
            k.ptrace(_SINGLESTEP, self._pid)
        self._read(registers)
        result = int(ctypes.c_long(registers.rax).value)
        if -4096 < result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            k.ptrace(_SETREGS, self._pid, 0, ctypes.addressof(self._registers))
        except ProcessLookupError:
            pass  # it has been killed
        finally:
            self._let_go()

    def _read(self, registers: _Registers) -> None:
        k.ptrace(_GETREGS, self._pid, 0, ctypes.addressof(registers))

    def _stop(self) -> int:
        """Wait until it stands still: why. A signal for it waits until it goes on."""
        _, status = os.waitpid(self._pid, _WALL)
        if not os.WIFSTOPPED(status):
            raise ProcessLookupError(errno.ESRCH, "it has ended")
        why = status >> 8
        if why != _TRAP and why >> 8 != _EVENT_STOP and not self._is_own_stop(why):
            self._postponed.append(why & 0xFF)
        return why

    def _is_own_stop(self, signum: int) -> bool:
        """What processes of its own namespace ask of PID 1 the kernel does not even tell it, unless it is traced."""
        if signum != signal.SIGSTOP:
            return False
        said = ctypes.create_string_buffer(_SIGINFO.size)
        k.ptrace(_GETSIGINFO, self._pid, 0, ctypes.addressof(said))
        *_, sender = _SIGINFO.unpack(said.raw)
        return bool(sender)

    def _let_go(self) -> None:
        if self.memory >= 0:
            os.close(self.memory)
        try:
            k.ptrace(_DETACH, self._pid)
            if not self._stood and signal.SIGSTOP not in self._postponed:
                os.kill(self._pid, signal.SIGCONT)  # one of its own that it has not told us of yet is nothing either
            for signum in self._postponed:
                os.kill(self._pid, signum)
        except ProcessLookupError:  # it has been killed; its parent hears of that when we have
            with suppress(ChildProcessError):
                os.waitpid(self._pid, _WALL)


def _has_ended(pidfd: int) -> bool:
    if pidfd < 0:
        return False
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
