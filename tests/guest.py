"""A machine with a kernel of another make: Debian's, in qemu without KVM, for what this host's kernel may not have.

It boots from an initramfs of Debian packages (Python, file system tools, busybox), made once below .cache, to which our
sources and a script are added for each run. The script's output comes back over a serial line of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

REPOSITORY = Path(__file__).parents[1]
CACHE = REPOSITORY / ".cache" / "guest"
PACKAGES = (
    "linux-image-cloud-amd64", "python3", "libseccomp2", "xfsprogs", "e2fsprogs", "kmod", "mount", "util-linux",
    "busybox-static", "dash", "coreutils", "libc-bin",
)  # fmt: skip
NEEDED = ("qemu-system-x86", "mmdebstrap")
RELEASE = "bookworm"
SECONDS = 1500  # an emulated machine is some twenty times slower, and others may use this one

_DIRECTORIES = ("bin", "sbin", "lib", "lib64", "usr", "etc")
_LEFT_OUT = ("usr/share", "usr/include", "lib/udev", "usr/lib/udev", "lib/systemd", "usr/lib/systemd", "etc/systemd")
_KERNEL_PARTS = ("fs/", "lib/", "crypto/", "arch/x86/crypto/", "drivers/block/", "drivers/virtio/")
_FOREIGN = ("fs/btrfs/", "fs/nfs", "fs/smb/", "fs/ceph/", "fs/gfs2/", "fs/ocfs2/", "fs/f2fs/", "fs/afs/")
_PACKAGES_OF_PYTHON = "usr/lib/python3/dist-packages"

# Boxes pivot their roots, which cannot be done on the first ramfs: all is copied to a tmpfs.
_INIT = f"""#!/bin/busybox sh
exec >/dev/console 2>&1
/bin/busybox mkdir -p /new
/bin/busybox mount -t tmpfs -o mode=755,size=75% root /new
/bin/busybox cp -a {" ".join(f"/{name}" for name in (*_DIRECTORIES, "begin", "script.py"))} /new/
exec /bin/busybox switch_root /new /begin
"""
_BEGIN = """#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
busybox mkdir -p /proc /sys /dev /tmp /run /var /mnt /root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
busybox mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
busybox ip link set lo up
ldconfig
depmod
for name in virtio_pci virtio_blk loop overlay xfs ext4 quota_v2; do modprobe $name; done
python3 /script.py >/dev/ttyS1 2>&1
echo "END $?" >/dev/ttyS1
sync
busybox poweroff -f
"""


def missing() -> str:
    """What has to be installed first; empty: nothing."""
    have = {"qemu-system-x86": "qemu-system-x86_64", "mmdebstrap": "mmdebstrap"}
    return " ".join(package for package in NEEDED if shutil.which(have[package]) is None)


def run(script: Path, beside: Path, disks: Sequence[int], scratch: Path) -> Iterator[str]:
    """The lines that a script of Python writes in the machine, as they come. `beside`: a package that it imports. `disks`: sizes in MiB of /dev/vda, vdb, …,
    which are empty. `scratch`: an empty directory; the machine's console is kept there. RuntimeError when it does not
    come to the script's end."""
    kernel, base = _base()
    initramfs = scratch / "initramfs"
    with open(initramfs, "wb") as file:
        with open(base, "rb") as made:
            shutil.copyfileobj(made, file, 1 << 20)
        _Archive(file).add_all(_ours(script, beside))
    command = [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1536", "-nodefaults",
        "-display", "none", "-no-reboot", "-kernel", str(kernel), "-initrd", str(initramfs),
        "-append", "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable",
        "-serial", f"file:{scratch}/console", "-serial", "stdio",
    ]  # fmt: skip
    for number, mib in enumerate(disks):
        disk = scratch / f"disk{number}"
        with open(disk, "wb") as file:
            file.truncate(mib << 20)
        command += ["-drive", f"file={disk},format=raw,if=virtio,cache=unsafe"]
    command = ["timeout", "--kill-after=5", str(SECONDS), *command]
    ended = False
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, errors="replace") as machine:
        assert machine.stdout is not None
        try:
            for line in machine.stdout:
                ended = line.startswith("END ")
                if not ended:
                    yield line.rstrip("\r\n")
        finally:
            machine.terminate()
    if not ended:
        console = (scratch / "console").read_text(errors="replace")
        raise RuntimeError(f"the machine ended early, with {machine.returncode}: {console[-3000:]}")


# --- what it boots from


def _base() -> tuple[Path, Path]:
    """Kernel and initramfs, without our sources; from the packages' archive, which is fetched once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    kernel, initramfs = CACHE / "vmlinuz", CACHE / "base.cpio"
    if kernel.exists() and initramfs.exists():
        return kernel, initramfs
    archive = CACHE / "packages.tar"
    include = f"--include={','.join(PACKAGES)}"
    subprocess.run(["mmdebstrap", "--quiet", "--variant=extract", include, RELEASE, archive], check=True)
    with tarfile.open(archive) as packed:
        image = next(entry for entry in packed if entry.name.startswith("./boot/vmlinuz-"))
        _write(kernel, lambda file: file.write(_content(packed, image)))
        _write(initramfs, lambda file: _Archive(file).add_all(_of_packages(packed)))
    archive.unlink()
    return kernel, initramfs


def _write(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    part = path.with_name(f"{path.name}.part")
    with open(part, "wb") as file:
        fill(file)
    part.rename(path)


Entry = tuple[str, int, bytes]  # name, mode with its type, content or target


def _of_packages(packed: tarfile.TarFile) -> Iterator[Entry]:
    yield from ((name, 0o40755, b"") for name in ("dev", "proc", "sys", "new"))
    yield "dev/console", 0o20600, b""
    for entry in packed:
        name = entry.name.removeprefix("./").rstrip("/")
        if name.partition("/")[0] not in _DIRECTORIES or name.startswith(_LEFT_OUT):
            continue
        if name.startswith("lib/modules/") and not entry.isdir():
            part = name.split("/", 4)[4] if name.count("/") >= 4 else ""
            if "/kernel/" in name and (not part.startswith(_KERNEL_PARTS) or part.startswith(_FOREIGN)):
                continue
        if entry.isdir():
            yield name, 0o40000 | entry.mode, b""
        elif entry.issym():
            yield name, 0o120777, entry.linkname.encode()
        elif entry.isfile() or entry.islnk():
            yield name, 0o100000 | entry.mode, _content(packed, entry)


def _content(packed: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = packed.extractfile(entry)
    assert file is not None
    return file.read()


def _ours(script: Path, beside: Path) -> Iterator[Entry]:
    import pyseccomp

    yield "init", 0o100755, _INIT.encode()
    yield "begin", 0o100755, _BEGIN.encode()
    yield "script.py", 0o100644, script.read_bytes()
    yield f"{_PACKAGES_OF_PYTHON}/pyseccomp.py", 0o100644, Path(pyseccomp.__file__).read_bytes()
    for source in (REPOSITORY / "src" / "boxwood", beside):
        for directory, _, names in os.walk(source):
            inside = Path(_PACKAGES_OF_PYTHON, source.name, Path(directory).relative_to(source))
            yield str(inside), 0o40755, b""
            for name in names:
                if name.endswith((".py", ".sql")):
                    yield str(inside / name), 0o100644, Path(directory, name).read_bytes()


class _Archive:
    """A cpio archive of the kind that kernels unpack ("newc"); several may follow each other in one file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._count = 0

    def add_all(self, entries: Iterator[Entry]) -> None:
        for name, mode, content in entries:
            self._add(name, mode, content)
        self._add("TRAILER!!!", 0, b"")
        self._file.write(bytes(-self._file.tell() % 512))

    def _add(self, name: str, mode: int, content: bytes) -> None:
        self._count += 1
        device = (5, 1) if name == "dev/console" else (0, 0)
        raw = name.encode() + b"\0"
        numbers = (self._count, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(raw), 0)
        self._file.write(b"070701" + b"".join(b"%08X" % number for number in numbers))
        for part in (raw, content):
            self._file.write(part + bytes(-(self._file.tell() + len(part)) % 4))
