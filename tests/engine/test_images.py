"""Images at work: boxes on the golden of this very host, and on root file systems that were imported."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from amounts import amount
from boxfixtures import Runner
from boxwood.engine.host import HostEngine
from boxwood.images import host as host_image
from boxwood.images import names, python
from boxwood.images.clientconfig import gather
from boxwood.images.rootfs import import_rootfs
from boxwood.images.shelf import ImageError

MAKE_WHEEL = """
import zipfile
with zipfile.ZipFile("tiny-1-py3-none-any.whl", "w") as wheel:
    wheel.writestr("tiny.py", "print(42)")
    wheel.writestr("tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1\\n")
    wheel.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr("tiny-1.dist-info/RECORD", "")
"""
PRIVATE_KEY = re.compile(rb"^-----BEGIN [A-Z ]*PRIVATE KEY", re.M)


@pytest.fixture
def golden_root(images: Path, golden: str) -> Path:
    return images / golden / "upper"


def secrets_of_this_host() -> list[bytes]:
    """Hashes, the machine's id, keys: what must be in no image made of it."""
    found = [line.split(b":")[1] for line in Path("/etc/shadow").read_bytes().splitlines()]
    found = [word for word in found if len(word) > 12]
    machine = Path("/etc/machine-id")
    if machine.is_file() and len(machine.read_bytes().strip()) == 32:
        found.append(machine.read_bytes().strip())
    return found


@pytest.mark.parametrize("share", [False, True])
def test_the_golden_of_this_host_holds_no_secret(images: Path, share: bool) -> None:
    golden_root = images / host_image.ensure(images, share_client_config=share).layer_id / "upper"
    words = secrets_of_this_host()
    for top in (name for name in os.listdir(golden_root) if name != "usr" and not (golden_root / name).is_symlink()):
        for directory, _, files in os.walk(golden_root / top):
            for name in files:
                path = Path(directory, name)
                if not path.is_symlink():
                    data = path.read_bytes()
                    assert not PRIVATE_KEY.search(data), path
                    assert not any(word in data for word in words), path
    for name in ("etc/ssh", "etc/sudoers", "etc/ssl/private", "etc/krb5.keytab", "etc/environment.d", "etc/docker"):
        assert not (golden_root / name).exists(), name
    assert (golden_root / "etc/machine-id").read_bytes() == b""
    assert sorted(os.listdir(golden_root / "home")) == ["user"]
    hashes = {line.split(":")[1] for line in (golden_root / "etc/shadow").read_text().splitlines()}
    assert hashes == {"*"}


def test_the_golden_holds_no_special_files(golden_root: Path) -> None:
    special = ["(", "-type", "b", "-o", "-type", "c", "-o", "-type", "s", "-o", "-type", "p", ")"]
    found = subprocess.run(["find", golden_root, "-xdev", *special], capture_output=True, check=True)
    assert found.stdout == b""


@pytest.mark.lent_engine
async def test_what_the_host_has_runs_in_a_box(runner: Runner) -> None:
    commands = {
        "python3 -c 'import ssl, sqlite3, ctypes, venv; print(6 * 7)'": "42",
        "python --version": "Python 3",
        "python3 -m pip --version": "pip ",
        "pip --version": "pip ",
        "id -un; getent passwd user": "user:x:1000:1000:",
        "cat /etc/machine-id; cat /etc/hostname": "boxwood",
        "perl -MPOSIX -e 'print 6 * 7'": "42",
        "git init -q /workspace/r && git -C /workspace/r status": "No commits yet",
        "echo 'int main(void) { return 7; }' > /tmp/x.c && gcc -o /tmp/x /tmp/x.c && /tmp/x || echo $?": "7",
        "dpkg -l bash | tail -1": "ii",
        "dpkg-query -S /bin/bash /usr/bin/bash 2>/dev/null | head -1": "bash:",
        "apt list --installed 2>/dev/null | grep ^bash/": "installed",
        "tar -C / -cf - etc/passwd | tar -tf -": "etc/passwd",
        "stat -c '%a %U' /tmp /root /home/user": "1777 root\n700 root\n755 user",
    }
    for command, expected in commands.items():
        program = command.split()[0]
        if program in ("perl", "git", "dpkg", "dpkg-query", "apt") and shutil.which(program) is None:
            continue
        if "gcc" in command and shutil.which("gcc") is None:
            continue
        result = await runner.run(command)
        assert expected in result.text, (command, result.text, bytes(result.err))


@pytest.mark.lent_engine
async def test_pip_installs_in_a_vm(runner: Runner, tmp_path: Path) -> None:
    """A wheel of our own: no network, no EXTERNALLY-MANAGED, and it can be imported afterwards."""
    result = await runner.run(f"cd /tmp && python3 -c {shlex.quote(MAKE_WHEEL)}")
    assert result.code == 0, bytes(result.err)
    result = await runner.run("pip install --no-index /tmp/tiny-1-py3-none-any.whl 2>&1; python3 -c 'import tiny'")
    assert result.text.endswith("42\n"), (result.text, bytes(result.err))


@pytest.mark.lent_engine
async def test_names_are_asked_for_at_the_one_server(runner: Runner) -> None:
    result = await runner.run("cat /etc/resolv.conf; grep ^hosts: /etc/nsswitch.conf; getent hosts boxwood localhost")
    text = result.text
    assert text.startswith(f"nameserver {names.NAMESERVER}\n")
    assert "hosts: files dns\n" in text
    assert text.splitlines()[-2:] == ["127.0.1.1       boxwood", "::1             localhost ip6-localhost ip6-loopback"]


@pytest.mark.lent_engine
async def test_tools_in_a_box_have_the_client_settings_of_this_host(engine: HostEngine, images: Path) -> None:
    """Whatever this machine's are: each tool in the box says the same as was shared."""
    shared = gather(Path("/"), os.environ)
    image = host_image.ensure(images, share_client_config=True)
    runner = Runner(engine, image.layer_id)
    await runner.boot()
    for path in shared.files:
        result = await runner.run(f"cat {path}")
        assert bytes(result.out) == shared.files[path], path
    settings = shared.files.get("/etc/npmrc", b"").decode().splitlines()
    for line in amount(settings[:1], settings):  # npm takes a second for each
        if shutil.which("npm", path="/usr/bin:/bin") is not None:
            key, _, value = line.partition("=")
            result = await runner.run(f"npm config get {key}")
            assert result.text.strip() == value, (line, bytes(result.err))
    result = await runner.run("pip config list")
    assert result.code == 0, bytes(result.err)
    for line in shared.files.get("/etc/pip.conf", b"").decode().splitlines():
        if " = " in line:
            assert f".{line.replace(' = ', '=')[:-1]}".replace("=", "='") in result.text
    result = await runner.run("apt-config dump")
    for line in shared.files.get("/etc/apt/apt.conf.d/99boxwood-host", b"").decode().splitlines():
        assert line.startswith("#") or line in result.text
    bundle = "python3 -c 'import ssl; print(len(ssl.create_default_context(cafile=\"{}\").get_ca_certs()))'"
    for path in (path for path in shared.files if path.endswith("ca-certificates.crt")):
        result = await runner.run(bundle.format(path))
        assert int(result.text) == shared.files[path].count(b"BEGIN CERTIFICATE"), bytes(result.err)


@pytest.fixture
def own_images(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "images"
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def bare_engine(data: Path, own_images: Path) -> AsyncIterator[HostEngine]:
    own_images.mkdir(mode=0o700)
    engine = HostEngine(data, own_images, network=False)
    await engine.start()
    yield engine
    await engine.shutdown()


def busybox_root(root: Path) -> Path:
    program = shutil.which("busybox")
    if program is None or b"dynamically" in subprocess.run(["file", "-L", program], capture_output=True).stdout:
        pytest.skip("needs a static busybox (apt install busybox-static)")
    (root / "bin").mkdir(parents=True)
    shutil.copy2(program, root / "bin/busybox")
    for name in ("sh", "cat", "ls", "echo", "id", "mkdir", "stat", "readlink"):
        (root / "bin" / name).symlink_to("busybox")
    return root


async def test_a_box_on_busybox_alone(bare_engine: HostEngine, own_images: Path, tmp_path: Path) -> None:
    image = import_rootfs(own_images, busybox_root(tmp_path / "root"))
    runner = Runner(bare_engine, image.layer_id)
    await runner.boot()
    result = await runner.run("cd /home/user && id -un && cat /etc/hostname && echo x > y && cat y && stat -c %u .")
    assert result.text.split() == ["root", "boxwood", "x", "1000"], bytes(result.err)
    # What was made ahead for a bash is gone: of terminals there is the session's, of processes its shell.
    (row,) = await bare_engine._living()
    place = f"/proc/{row['pid']}"
    opened = [os.readlink(f"{place}/fd/{fd}") for fd in os.listdir(f"{place}/fd")]
    assert sum(name.endswith("ptmx") for name in opened) == 1, opened
    assert len(Path(f"{place}/task/{row['pid']}/children").read_text().split()) == 1


async def test_a_box_on_a_hostile_root(bare_engine: HostEngine, own_images: Path, tmp_path: Path) -> None:
    """Links where a box mounts its own: they lead nowhere, neither when it is imported nor when a box boots."""
    root = busybox_root(tmp_path / "root")
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("proc", "sys", "dev", "run", "tmp", "root", "home", "workspace"):
        (root / name).symlink_to(outside)
    (root / "etc").mkdir()
    for name in ("passwd", "group", "hosts", "hostname", "resolv.conf", "machine-id"):
        (root / "etc" / name).symlink_to(outside / name)
    image = import_rootfs(own_images, root)
    runner = Runner(bare_engine, image.layer_id)
    await runner.boot()
    result = await runner.run("cat /proc/self/comm; ls -d /dev/null /sys/class /tmp/. /root/.; cat /etc/hostname")
    assert result.text.split() == ["cat", "/dev/null", "/root/.", "/sys/class", "/tmp/.", "boxwood"]
    assert os.listdir(outside) == []


def test_an_import_is_confined(own_images: Path, tmp_path: Path) -> None:
    """The same archive that unit tests refuse, through the child: nothing outside is touched, nothing is left."""
    canary = tmp_path / "canary"
    canary.write_text("alive")
    for name, target in (("door", str(tmp_path)), ("door", "../" * 30 + str(tmp_path)[1:])):
        archive = tmp_path / "hostile.tar"
        with tarfile.open(archive, "w") as made:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            made.addfile(link)
            file = tarfile.TarInfo("door/canary")
            file.size = 4
            made.addfile(file, io.BytesIO(b"dead"))
        with pytest.raises(ImageError, match="no directory"):
            import_rootfs(own_images, archive)
        assert canary.read_text() == "alive"
        assert sorted(os.listdir(own_images)) == ["lock"]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: path.write_bytes(b"no archive" * 100), "not a whole tar archive"),
        (lambda path: path.mkdir(), "/bin/sh: No such file"),
        (lambda path: None, "No such file"),
        (lambda path: os.mkfifo(path), "neither a file nor a directory"),
    ],
)
def test_what_is_no_root_is_said(own_images: Path, tmp_path: Path, make: Callable[[Path], object], text: str) -> None:
    make(tmp_path / "source")
    with pytest.raises(ImageError, match=re.escape(text)):
        import_rootfs(own_images, tmp_path / "source")
    assert sorted(os.listdir(own_images) if own_images.exists() else ["lock"]) in (["lock"], [])


def test_the_hint_for_a_directory_packed_too_high(own_images: Path, tmp_path: Path) -> None:
    busybox_root(tmp_path / "source/rootfs")
    with pytest.raises(ImageError, match="it lies in 'rootfs'"):
        import_rootfs(own_images, tmp_path / "source")


@pytest.mark.parametrize(
    "packer", [["cat"], ["gzip", "-c"], *amount([], [["xz", "-c0"], ["bzip2", "-c1"]]), ["zstd", "-qc"]]
)
def test_the_same_archive_is_the_same_layer(own_images: Path, tmp_path: Path, packer: list[str]) -> None:
    if shutil.which(packer[0]) is None:
        pytest.skip(f"needs {packer[0]}")
    root = busybox_root(tmp_path / "root")
    os.mknod(root / "null", 0o20666, os.makedev(1, 3))
    plain, packed = tmp_path / "root.tar", tmp_path / "root.packed"
    subprocess.run(["tar", "-C", root, "-cf", plain, "."], check=True)
    with open(plain, "rb") as source, open(packed, "wb") as target:
        subprocess.run(packer, stdin=source, stdout=target, check=True)
    phases: list[str] = []
    first = import_rootfs(own_images, packed, lambda phase, done, total: phases.append(phase))
    assert first.skipped == 1
    assert {"read", "unpack"} <= set(phases)
    assert import_rootfs(own_images, packed) == first
    if packer == ["cat"]:
        return
    with open(packed, "r+b") as f:  # cut short: refused, and nothing of it is left
        f.truncate(packed.stat().st_size - 1 if packer[0] != "bzip2" else packed.stat().st_size // 2)
    before = sorted(os.listdir(own_images))
    with pytest.raises(ImageError):
        import_rootfs(own_images, packed)
    assert sorted(os.listdir(own_images)) == before


def libraries_of(*programs: Path) -> set[str]:
    """The names of those that these load: all of the host's take long to copy."""
    told = subprocess.run(["ldd", *programs], capture_output=True, text=True).stdout
    return {os.path.basename(word) for word in told.split() if ".so" in word}


async def test_the_interpreter_that_runs_boxwood_runs_in_an_image(
    bare_engine: HostEngine, own_images: Path, golden_root: Path, tmp_path: Path
) -> None:
    """On a root with the host's libraries but no python of its own, as the golden of such a host has."""
    root = tmp_path / "root"
    (root / "usr").mkdir(parents=True)
    for name in ("bin", "lib", "lib32", "lib64", "libx32"):
        if (golden_root / name).is_symlink():
            (root / name).symlink_to(os.readlink(golden_root / name))
    for name in ("usr/bin", "usr/lib", "usr/lib64"):
        (root / name).mkdir(exist_ok=True)
    programs = [golden_root / "usr/bin" / name for name in ("bash", "sh", "env", "cat")]
    for program in programs:
        shutil.copy2(program, root / "usr/bin")
    modules = Path(sysconfig.get_path("platstdlib"), "lib-dynload").glob("*.so")
    needed = libraries_of(*programs, Path(sys.executable).resolve(), *modules)
    for directory in golden_root.glob("usr/lib/*-linux-gnu*"):
        (root / "usr/lib" / directory.name).mkdir()
        libraries = [path for path in directory.iterdir() if path.name in needed]
        subprocess.run(["cp", "-L", *libraries, root / "usr/lib" / directory.name], check=True)
    subprocess.run(["cp", "-a", f"{golden_root}/usr/lib64/.", root / "usr/lib64"], check=True)
    assert python.equip(root) is None
    image = import_rootfs(own_images, root)
    runner = Runner(bare_engine, image.layer_id)
    await runner.boot()
    result = await runner.run("python3 -c 'import json, zlib, sys; print(sys.prefix)' && pip --version")
    assert result.text.startswith("/usr/local\npip "), (result.text, bytes(result.err), result.end)


@pytest.mark.full
async def test_a_box_on_a_debian_made_by_mmdebstrap(bare_engine: HostEngine, own_images: Path, tmp_path: Path) -> None:
    if shutil.which("mmdebstrap") is None:
        pytest.skip("needs mmdebstrap (apt install mmdebstrap)")
    archive = tmp_path / "debian.tar"
    subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", "bookworm", archive], check=True)
    image = import_rootfs(own_images, archive)
    assert image.skipped > 0  # /dev/null and its like
    runner = Runner(bare_engine, image.layer_id)
    await runner.boot()
    result = await runner.run("dpkg -l apt | tail -1; cat /etc/hostname; stat -c '%a %U' /tmp; perl -e 'print 6 * 7'")
    assert result.text.startswith("ii")
    assert result.text.endswith("boxwood\n1777 root\n42")
