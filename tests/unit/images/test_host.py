"""The host golden, made of a small host of our own: what gets in, what never does, when it is made again."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from boxwood.images import host
from boxwood.images.shelf import ImageError

KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----\n"
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
HASH = "$y$j9T$saltsaltsalt$hashhashhashhash"
SECRET = "hunter2hunter2"

PUBLIC = {
    "usr/bin/tool": "#!/bin/sh\n",
    "usr/bin/bash": "#!/bin/true\n",
    "usr/bin/python3.11": "#!/bin/true\n",
    "usr/lib/python3.11/os.py": "",
    "usr/lib/python3.11/EXTERNALLY-MANAGED": "[x]",
    "usr/lib/python3/dist-packages/pip/__main__.py": "",
    "usr/include/stdio.h": "int;",
    "usr/local/bin/mine": "x",
    "usr/share/doc/tool/README": "x",
    "usr/share/man/man1/tool.1": "x",
    "usr/share/locale/de/x.mo": "x",
    "usr/src/x.c": "x",
    "usr/etc/npmrc": f"//registry/:_authToken={SECRET}\n",
    "usr/lib/modules/6.1/x.ko": "x",
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\nmessagebus:x:100:102::/nonexistent:/usr/sbin/nologin\n"
    "alice:x:1000:1000:Alice Liddell,,,:/home/alice:/bin/bash\ntoor:x:0:0::/root:/bin/sh\n",
    "etc/group": "root:x:0:\nmessagebus:x:102:\nshadow:x:42:alice\nalice:x:1000:\n",
    "etc/ld.so.conf": "include /etc/ld.so.conf.d/*.conf\n",
    "etc/debian_version": "12.11\n",
    "etc/os-release": "ID=debian\n",
    "etc/skel/.bashrc": "# .bashrc\n",
    "etc/hostname": "the-host\n",
    "etc/hosts": "10.0.0.5 the-host\n",
    "etc/machine-id": "0123456789abcdef0123456789abcdef\n",
    "etc/environment": f"API={SECRET}\n",
    "etc/profile.d/good.sh": "export EDITOR=vi\n",
    "etc/profile.d/bad.sh": f"export GITHUB_TOKEN={SECRET}\n",
    "etc/gitconfig": f"[url]\n\tx = https://me:{SECRET}@git\n",
    "etc/npmrc": SECRET,
    "etc/pip.conf": f"[global]\nindex-url = https://me:{SECRET}@pypi\n",
    "etc/wgetrc": f"http_proxy = http://me:{SECRET}@proxy:3128/\n",
    "etc/ssl/openssl.cnf": "x = y\n",
    "etc/ssl/certs/ca.pem": CERTIFICATE,
    "etc/ssl/certs/server.pem": CERTIFICATE + KEY,
    "etc/ssl/private/server.key": KEY,
    "etc/ssh/ssh_host_ed25519_key": KEY,
    "etc/perl/x.pm": KEY,
    "etc/java-17-openjdk/management/jmxremote.password": SECRET,
    "etc/security/opasswd": f"alice:1000:1:{HASH}\n",
    "etc/security/limits.conf": "# none\n",
    "etc/apt/sources.list": f"deb http://deb.debian.org/debian x main\ndeb https://me:{SECRET}@corp/debian x main\n",
    "etc/apt/sources.list.d/corp.sources": f"Types: deb\nURIs: https://{SECRET}@corp/\n\nTypes: deb\nURIs: http://open/\n",
    "etc/apt/auth.conf.d/corp.conf": f"machine corp login me password {SECRET}\n",
    "etc/apt/apt.conf.d/90proxy": f'Acquire::http::Proxy "http://me:{SECRET}@proxy";\n',
    "etc/apt/apt.conf.d/91hook": 'DPkg::Post-Invoke {"touch /x";};\n',
    "etc/apt/apt.conf.d/92plain": 'APT::Install-Recommends "false";\n',
    "etc/krb5.keytab": SECRET,
    "etc/wireguard/wg0.conf": SECRET,
    "etc/default/useradd": "SHELL=/bin/sh\n",
    "etc/default/docker": f"export HTTP_PROXY=http://me:{SECRET}@proxy\n",
    "var/lib/dpkg/status": "Package: tool\n",
    "var/lib/dpkg/info/libsecret-1-0:amd64.list": "/.\n",
    "var/lib/dpkg/statoverride": "root messagebus 4754 /usr/bin/tool\nroot alice 2755 /usr/bin/other\n# note\n",
    "var/lib/dpkg/arch": "amd64\n",
    "var/log/auth.log": SECRET,
    "root/.ssh/id_rsa": KEY,
    "home/alice/.netrc": SECRET,
}
HIDDEN = {"etc/shadow": f"alice:{HASH}:1::::::\n", "etc/profile.d/hidden.sh": SECRET, "usr/share/hidden": SECRET}


def build(root: Path) -> Path:
    for files, mode in ((PUBLIC, 0o644), (HIDDEN, 0o640)):
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
            (root / name).chmod(mode)
    (root / "usr/bin/tool").chmod(0o4755)
    (root / "usr/bin/python3").symlink_to("python3.11")
    (root / "usr/share/closed").mkdir(mode=0o700)
    (root / "usr/share/closed/open").write_text(SECRET)
    os.mkfifo(root / "usr/share/fifo")
    for name in ("bin", "lib"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "etc/localtime").symlink_to("/usr/share/zoneinfo/Etc/UTC")
    (root / "etc/ssl/certs/link.pem").symlink_to("ca.pem")
    return root


@pytest.fixture
def small_host(tmp_path: Path) -> Path:
    return build(tmp_path / "host")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The host of `image`, which tests only look at."""
    return build(tmp_path_factory.mktemp("original") / "host")


@pytest.fixture(scope="module")
def image(original: Path) -> Path:
    images = original.parent / "images"
    return images / host.ensure(images, host=original).layer_id / "upper"


def everything(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_no_secret_gets_in(image: Path) -> None:
    files = everything(image)
    for word in (SECRET, HASH, "PRIVATE KEY", "the-host", "0123456789abcdef", "alice", "Alice", "authToken"):
        holders = [name for name, data in files.items() if word.encode() in data]
        assert not holders, f"{word} in {holders}"
    names = {str(path.relative_to(image)) for path in image.rglob("*")}
    assert not names & {"etc/ssh", "etc/ssl/private", "etc/pip.conf", "etc/krb5.keytab", "etc/wireguard", "home/alice"}


def test_what_programs_need_gets_in(image: Path) -> None:
    for name in (
        "usr/include/stdio.h", "etc/ld.so.conf", "etc/debian_version", "etc/ssl/openssl.cnf", "etc/ssl/certs/ca.pem",
        "etc/security/limits.conf", "etc/profile.d/good.sh", "etc/default/useradd", "var/lib/dpkg/arch",
        "var/lib/dpkg/info/libsecret-1-0:amd64.list", "etc/apt/apt.conf.d/92plain",
    ):  # fmt: skip
        assert (image / name).is_file(), name
    assert os.readlink(image / "bin") == "usr/bin"
    assert os.readlink(image / "etc/localtime") == "/usr/share/zoneinfo/Etc/UTC"
    assert os.readlink(image / "etc/ssl/certs/link.pem") == "ca.pem"
    assert os.readlink(image / "usr/bin/python") == "python3"
    assert (image / "etc/apt/sources.list").read_text() == "deb http://deb.debian.org/debian x main\n"
    assert (image / "etc/apt/sources.list.d/corp.sources").read_text().split() == [
        "Types:",
        "deb",
        "URIs:",
        "http://open/",
    ]
    assert not (image / "etc/apt/apt.conf.d/91hook").exists()


def test_what_is_left_out_of_usr(image: Path) -> None:
    for name in ("usr/local/bin/mine", "usr/share/doc/tool", "usr/share/man/man1/tool.1", "usr/share/locale/de",
                 "usr/src/x.c", "usr/lib/python3.11/EXTERNALLY-MANAGED", "usr/lib/modules", "usr/share/fifo",
                 "usr/share/hidden", "usr/share/closed"):  # fmt: skip
        assert not (image / name).exists(), name
    for name in ("usr/local/bin", "usr/share/doc", "usr/share/man/man1", "usr/share/locale"):
        assert (image / name).is_dir(), name


def test_accounts_are_the_systems_and_locked(image: Path) -> None:
    users = dict(line.split(":", 1) for line in (image / "etc/passwd").read_text().splitlines())
    assert users["root"] == "x:0:0:root:/root:/bin/bash"
    assert users["user"] == "x:1000:1000:user:/home/user:/bin/bash"
    assert users["messagebus"].startswith("x:100:102:")
    assert {"nobody", "daemon", "www-data", "_apt"} <= set(users)
    assert "toor" not in users
    shadow = [line.split(":") for line in (image / "etc/shadow").read_text().splitlines()]
    assert {line[0] for line in shadow} == set(users)
    assert {line[1] for line in shadow} == {"*"}
    assert all(line.count(":") == 3 and line.endswith(":") for line in (image / "etc/group").read_text().splitlines())
    assert (image / "var/lib/dpkg/statoverride").read_text() == "root messagebus 4754 /usr/bin/tool\n"


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("", 0o755), ("tmp", 0o1777), ("var/tmp", 0o1777), ("root", 0o700), ("proc", 0o555), ("workspace", 0o755),
        ("home/user", 0o755), ("etc/shadow", 0o640), ("etc/gshadow", 0o640), ("etc/passwd", 0o644),
        ("usr/bin/tool", 0o4755), ("var/cache/apt/archives/partial", 0o700), ("var/mail", 0o2775),
    ],
)  # fmt: skip
def test_modes(image: Path, name: str, mode: int) -> None:
    assert stat.S_IMODE((image / name).stat().st_mode) == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_owners(image: Path) -> None:
    owners = {"etc/shadow": (0, 42), "home/user": (1000, 1000), "home/user/.bashrc": (1000, 1000), "root": (0, 0)}
    found = {name: ((image / name).stat().st_uid, (image / name).stat().st_gid) for name in owners}
    assert found == owners


def test_files_of_usr_are_linked_and_those_of_etc_are_not(original: Path, image: Path) -> None:
    assert (image / "usr/bin/tool").samefile(original / "usr/bin/tool")
    assert not (image / "etc/debian_version").samefile(original / "etc/debian_version")
    assert (image / "etc/machine-id").read_text() == ""
    assert (image / "etc/hostname").read_text() == "boxwood\n"


def test_copies_where_links_cannot_be(small_host: Path) -> None:
    shm = Path("/dev/shm")
    if shm.stat().st_dev == small_host.stat().st_dev or not os.access(shm, os.W_OK):
        pytest.skip("needs a second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=shm) as other:
        made = host.ensure(Path(other), host=small_host)
        root = Path(other) / made.layer_id / "upper"
        tool = root / "usr/bin/tool"
        assert tool.read_bytes() == (small_host / "usr/bin/tool").read_bytes()
        assert tool.stat().st_nlink == 1
        assert tool.stat().st_mode & 0o7777 == 0o4755
        assert tool.stat().st_mtime_ns == (small_host / "usr/bin/tool").stat().st_mtime_ns
        assert os.readlink(root / "usr/bin/python3") == "python3.11"
        assert made.copied > 0


def test_it_is_made_once_and_again_when_packages_change(small_host: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    assert host.find(images, small_host) is None
    phases: list[str] = []
    first = host.ensure(images, lambda phase, done, total: phases.append(phase) or None, host=small_host)
    assert phases[0] == "directories"
    assert phases[-1] == "disk"
    assert host.ensure(images, lambda *_: pytest.fail("made again"), host=small_host) == first
    with open(small_host / "var/lib/dpkg/status", "a") as status:
        status.write("Package: other\n")
    second = host.ensure(images, host=small_host)
    assert second.layer_id != first.layer_id
    assert (images / first.layer_id / "upper").is_dir()  # VMs may stand on it


def test_two_at_once_make_one(small_host: Path, tmp_path: Path) -> None:
    made: list[host.HostImage] = []

    def make() -> None:
        made.append(host.ensure(tmp_path / "images", host=small_host))

    threads = [threading.Thread(target=make) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({image.layer_id for image in made}) == 1
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == sorted(
        [made[0].layer_id, "host.lock", "index.json", "lock"]
    )


def test_a_host_without_python_gets_the_one_that_runs_boxwood(small_host: Path, tmp_path: Path) -> None:
    (small_host / "usr/bin/python3").unlink()
    (small_host / "usr/bin/python3.11").unlink()
    made = host.ensure(tmp_path / "images", host=small_host)
    root = tmp_path / "images" / made.layer_id / "upper"
    environment = {"PATH": "/usr/bin:/bin"}
    site = Path(sys.base_prefix, "lib", f"python{sys.version_info[0]}.{sys.version_info[1]}", "site-packages")
    module = "pip" if (site / "pip").is_dir() else "unittest"  # a distribution keeps its pip elsewhere
    asked = [
        str(root / "usr/local/bin/python3"),
        "-c",
        f"import sys, json, {module} as m; print(sys.prefix, m.__file__)",
    ]
    said = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
    if "error while loading shared libraries" in said.stderr:
        pytest.skip("this interpreter finds its library by an absolute path: see tests/engine/test_images.py")
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(str(root / "usr/local"))
    assert str(root) in said.stdout.split()[1]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert not (root / f"usr/local/lib/{version}/test").exists()


def test_a_failure_is_said_and_leaves_nothing(small_host: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in list(os.listdir(small_host / "usr")):
        subprocess.run(["rm", "-rf", small_host / "usr" / name], check=True)
    (small_host / "usr").rmdir()
    with pytest.raises(ImageError, match="could not be made"):
        host.ensure(tmp_path / "images", host=small_host)
    assert not list((tmp_path / "images").glob("*.part"))
