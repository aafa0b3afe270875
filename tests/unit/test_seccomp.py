"""The filter as programs meet it: loaded in a child, then asked."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from boxwood.engine import kernel as k
from boxwood.engine import seccomp
from boxwood.engine.api import EngineUnavailable

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")
NEWNS, NEWUSER, NEWTIME = 0x20000, 0x10000000, 0x80


@pytest.fixture(scope="module")
def program() -> bytes:
    return seccomp.program()


def confined(program: bytes, work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked child under the filter."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            k.no_new_privileges()
            k.load_seccomp(program)
            answer = json.dumps(work())
            os.write(writing, answer.encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, "rb") as answers:
        text = answers.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0
    return json.loads(text)


def call(number: int, *arguments: int) -> int:
    """0, or the errno."""
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments))
    return ctypes.get_errno() if result < 0 else 0


@X86
@pytest.mark.parametrize(
    ("name", "number", "arguments"),
    [
        ("mount", 165, (0, 0, 0, 0, 0)),
        ("umount2", 166, (0, 0)),
        ("pivot_root", 155, (0, 0)),
        ("setns", 308, (0, 0)),
        ("open_tree", 428, (0, 0, 0)),
        ("move_mount", 429, (0, 0, 0, 0, 0)),
        ("fsopen", 430, (0, 0)),
        ("mount_setattr", 442, (0, 0, 0, 0, 0)),
        ("io_uring_setup", 425, (1, 0)),
        ("io_uring_enter", 426, (0, 0, 0, 0)),
        ("io_uring_register", 427, (0, 0, 0, 0)),
        ("bpf", 321, (0, 0, 0)),
        ("keyctl", 250, (0, 0, 0)),
        ("add_key", 248, (0, 0, 0, 0, 0)),
        ("request_key", 249, (0, 0, 0, 0)),
        ("userfaultfd", 323, (0,)),
        ("perf_event_open", 298, (0, 0, 0, 0, 0)),
        ("open_by_handle_at", 304, (0, 0, 0)),
        ("name_to_handle_at", 303, (0, 0, 0, 0, 0)),
        ("kexec_load", 246, (0, 0, 0, 0)),
        ("init_module", 175, (0, 0, 0)),
        ("reboot", 169, (0, 0, 0)),
        ("syslog", 103, (10, 0, 0)),
        ("swapon", 167, (0, 0)),
        ("quotactl", 179, (0, 0, 0, 0)),
        ("acct", 163, (0,)),
        ("clock_settime", 227, (0, 0)),
        ("settimeofday", 164, (0, 0)),
        ("sethostname", 170, (0, 0)),
        ("iopl", 172, (0,)),
        ("ioperm", 173, (0, 0, 0)),
        ("modify_ldt", 154, (0, 0, 0)),
        ("pidfd_getfd", 438, (0, 0, 0)),
        ("fanotify_init", 300, (0, 0)),
        ("unshare user", 272, (NEWUSER,)),
        ("unshare mount", 272, (NEWNS,)),
        ("unshare time", 272, (NEWTIME,)),
        ("clone user", 56, (NEWUSER | 17, 0, 0, 0, 0)),
        ("clone mount", 56, (NEWNS | 17, 0, 0, 0, 0)),
        ("personality READ_IMPLIES_EXEC", 135, (0x400000,)),
        ("prlimit64 of another", 302, (1, 7, 1, 0)),
        ("AF_PACKET", 41, (17, 3, 0)),
        ("AF_VSOCK", 41, (40, 1, 0)),
        ("AF_ALG", 41, (38, 5, 0)),
        ("AF_VSOCK, high bits set", 41, ((1 << 32) | 40, 1, 0)),
        ("TIOCSTI", 16, (0, 0x5412, 0)),
        ("TIOCSTI, high bits set", 16, (0, (1 << 32) | 0x5412, 0)),
        ("TIOCLINUX", 16, (0, 0x541C, 0)),
        ("TIOCLINUX, high bits set", 16, (0, (0xABCD << 32) | 0x541C, 0)),
    ],
)
def test_what_a_box_must_not_ask(program: bytes, name: str, number: int, arguments: tuple[int, ...]) -> None:
    assert confined(program, lambda: call(number, *arguments)) == errno.EPERM


@X86
@pytest.mark.parametrize(
    ("name", "number"),
    [("clone3", 435), ("a call of the future", 600), ("x32 getpid", 0x40000000 | 39), ("x32 ioctl", 0x40000000 | 514)],
)
def test_what_is_answered_as_if_it_did_not_exist(program: bytes, name: str, number: int) -> None:
    assert confined(program, lambda: call(number, 0, 0)) == errno.ENOSYS


@X86
@pytest.mark.parametrize("number", [20, 21, 120])  # i386: getpid, mount, clone
def test_the_32_bit_door_is_shut(program: bytes, number: int) -> None:
    def through_int_80() -> int:
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        # push rbx; xor ebx,ebx; mov eax,number; int 0x80; pop rbx; ret
        page.write(b"\x53\x31\xdb\xb8" + struct.pack("<I", number) + b"\xcd\x80\x5b\xc3")
        code = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        return int(code())

    assert confined(program, through_int_80) == -errno.ENOSYS


@X86
def test_what_arguments_allow(program: bytes) -> None:
    def ask() -> dict[str, int]:
        return {
            "unshare files": call(272, 0x400),
            "personality query": call(135, 0xFFFFFFFF),
            "no address randomisation": call(135, 0x40000),
            "own limits": call(302, 0, 7, 0, 0),
            "limits of another, read": call(302, os.getppid(), 7, 0, 0),
            "ptrace (TRACEME)": call(101, 0, 0, 0, 0),
        }

    assert [name for name, answer in confined(program, ask).items() if answer != 0] == []


def test_sockets_of_everyday(program: bytes) -> None:
    def ask() -> int:
        for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6):
            socket.socket(family, socket.SOCK_STREAM).close()
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()
        return len(socket.socketpair())

    assert confined(program, ask) == 2


def test_threads_and_children_still_work(program: bytes) -> None:
    def ask() -> str:
        import threading

        said: list[str] = []
        thread = threading.Thread(target=lambda: said.append(subprocess.check_output(["echo", "hello"], text=True)))
        thread.start()
        thread.join()
        return said[0]

    assert confined(program, ask) == "hello\n"


C_SOURCE = '#include <stdio.h>\n#include <fcntl.h>\nint main(void) { puts("compiled"); return 0; }\n'


@pytest.mark.parametrize(
    ("program_name", "command", "expected"),
    [
        ("bash", "bash -c 'f() { echo $((6 * 7)); }; f | cat'", "42"),
        ("python3", "python3 -c 'import ssl, sqlite3, asyncio; asyncio.run(asyncio.sleep(0)); print(42)'", "42"),
        ("node", 'node -e \'require("fs").promises.readFile("/etc/hostname").then(() => console.log(42))\'', "42"),
        ("go", "go version", "go version"),
        ("java", "java -version 2>&1", "ersion"),
        ("apt-get", "apt-get --version", "apt"),
        (
            "git",
            "git init -q r && cd r && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x && git log",
            "x",
        ),
        ("tar", "mkdir d && touch d/f && chmod 700 d/f && tar -c d | tar -xv --one-top-level=e", "d/f"),
        ("gcc", "gcc -O1 -o hello hello.c && ./hello", "compiled"),
    ],
)
def test_everyday_programs(program: bytes, tmp_path: Path, program_name: str, command: str, expected: str) -> None:
    if shutil.which(program_name) is None:
        pytest.skip(f"{program_name} is not installed")
    (tmp_path / "hello.c").write_text(C_SOURCE)
    (tmp_path / "filter").write_bytes(program)
    start = (
        "import os, sys; from boxwood.engine import kernel as k; k.no_new_privileges();"
        "k.load_seccomp(open('filter', 'rb').read()); os.execvp('sh', ['sh', '-c', sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", start, command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert expected in done.stdout


def test_a_missing_library_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyseccomp", None)
    with pytest.raises(EngineUnavailable, match="libseccomp2"):
        seccomp.program()


def test_an_unknown_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(EngineUnavailable, match="riscv64"):
        seccomp.program()
