"""Docker as a peer: a daemon of our own with its default network, in namespaces of its own, so that nothing remains.

Where there is no dockerd on the PATH, Debian's packages are unpacked (not installed) below .cache/bench.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import timed
from peers import Unavailable

START_SECONDS = 30.0
IMAGE = "boxwood-bench"


@contextmanager
def daemon(scratch: Path, cache: Path, rootfs: Path) -> Iterator[Docker]:
    """A running daemon that has the image `rootfs` (a tar). Unavailable."""
    if os.geteuid() != 0:
        raise Unavailable("needs root")
    environment = _environment(cache)
    scratch.mkdir(parents=True, exist_ok=True)
    address = scratch / "docker.sock"
    command = [
        "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
        "dockerd", "--data-root", f"{scratch}/data", "--exec-root", f"{scratch}/exec",
        "--pidfile", f"{scratch}/docker.pid", "--host", f"unix://{address}",
    ]  # fmt: skip
    with (scratch / "dockerd.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        docker = Docker(address, process)
        docker.wait(process, scratch / "dockerd.log")
        docker.load(rootfs)
        yield docker
    finally:
        _stop(process)
        _sweep()


class Docker:
    """The daemon's API, spoken directly: what docker-py sends, without the time that docker-py takes."""

    def __init__(self, address: Path, process: subprocess.Popen[bytes]) -> None:
        self._address = address
        self._process = process
        self.version = "?"

    @property
    def pid(self) -> int:
        """The daemon's own: the first process of its namespaces."""
        return int(Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()[0])

    def address(self, container: str) -> str:
        """On the default bridge."""
        found = self._call("GET", f"/containers/{container}/json")["NetworkSettings"]
        return str(found["IPAddress"] or found["Networks"]["bridge"]["IPAddress"])

    def wait(self, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.version = self._call("GET", "/version")["Version"]
                return
            except (OSError, http.client.HTTPException):
                if process.poll() is not None or time.monotonic() > deadline:
                    last = log.read_text(errors="replace").strip().splitlines()[-1:]
                    raise Unavailable(f"dockerd did not start: {''.join(last)[-300:]}") from None
                time.sleep(0.1)

    def load(self, rootfs: Path) -> None:
        with rootfs.open("rb") as tar:
            self._call("POST", f"/images/create?fromSrc=-&repo={IMAGE}&tag=latest", raw=tar.read())

    def create(self) -> str:
        made = self._call("POST", "/containers/create", {"Image": IMAGE, "Cmd": ["sleep", "1000000"]})
        self._call("POST", f"/containers/{made['Id']}/start")
        return str(made["Id"])

    def run(self, container: str, command: list[str]) -> None:
        """docker exec: its output is read to the end and its exit code asked for."""
        asked = {"AttachStdout": True, "AttachStderr": True, "Cmd": command}
        ident = self._call("POST", f"/containers/{container}/exec", asked)["Id"]
        self._call("POST", f"/exec/{ident}/start", {"Detach": False, "Tty": False})
        code = self._call("GET", f"/exec/{ident}/json")["ExitCode"]
        if code != 0:
            raise Unavailable(f"{command} ended with {code}")

    def remove(self, container: str) -> None:
        self._call("DELETE", f"/containers/{container}?force=1")

    def first(self) -> float:
        """Milliseconds to create a container and run a first command; its removal is not counted."""
        made: list[str] = []

        def step() -> None:
            made.append(self.create())
            self.run(made[0], ["true"])

        took = timed(step)
        self.remove(made[0])
        return took

    def copy_in(self, container: str, name: str, pieces: Iterable[bytes], size: int) -> None:
        """What `docker cp FILE CONTAINER:/` sends."""
        info = tarfile.TarInfo(name)
        info.size = size
        body = itertools.chain([info.tobuf()], pieces, [bytes(-size % 512 + 1024)])
        headers = {"Content-Type": "application/x-tar", "Host": "docker"}
        with contextlib.closing(_UnixConnection(str(self._address))) as connection:
            connection.request("PUT", f"/containers/{container}/archive?path=/", body, headers, encode_chunked=True)
            answer = connection.getresponse()
            said = answer.read()
        if answer.status >= 400:
            raise Unavailable(f"docker cp: {said[:300].decode(errors='replace')}")

    def copy_out(self, container: str, path: str) -> int:
        """What `docker cp CONTAINER:PATH` reads: bytes of the archive."""
        with contextlib.closing(_UnixConnection(str(self._address))) as connection:
            connection.request("GET", f"/containers/{container}/archive?path={path}", headers={"Host": "docker"})
            answer = connection.getresponse()
            size = 0
            while piece := answer.read(1 << 18):
                size += len(piece)
        return size

    def _call(self, method: str, path: str, body: Any = None, raw: bytes | None = None) -> Any:
        connection = _UnixConnection(str(self._address))
        try:
            sent = raw if raw is not None else json.dumps(body) if body is not None else None
            kind = "application/x-tar" if raw is not None else "application/json"
            connection.request(method, path, sent, {"Content-Type": kind, "Host": "docker"})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            raise Unavailable(f"Docker: {method} {path}: {text[:300].decode(errors='replace')}")
        try:
            return json.loads(text)
        except ValueError:
            return None  # a stream of output


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, address: str) -> None:
        super().__init__("docker", timeout=60)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._address)


def _environment(cache: Path) -> dict[str, str]:
    if shutil.which("dockerd"):
        return dict(os.environ)
    root = cache / "docker"
    if not (root / "ready").exists():
        _unpack(root)
    libraries = next(iter(root.glob("usr/lib/*-linux-gnu")), root)
    path = f"{root}/links:{root}/usr/bin:{root}/usr/sbin:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "LD_LIBRARY_PATH": str(libraries), "XTABLES_LIBDIR": f"{libraries}/xtables"}


def _unpack(root: Path) -> None:
    if not shutil.which("apt-get"):
        raise Unavailable("not installed, and no apt-get to fetch it with")
    print("bench: fetching Debian's docker.io into", root, flush=True)
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    plan = subprocess.run(
        ["apt-get", "install", "--simulate", "--no-install-recommends", "docker.io"],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    names = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
    got = subprocess.run(["apt-get", "-qq", "download", *names], cwd=root, capture_output=True, text=True, check=False)
    packages = list(root.glob("*.deb"))
    if got.returncode or not packages:
        raise Unavailable(f"docker.io cannot be fetched: {got.stderr.strip()[-300:]}")
    for package in packages:
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
        package.unlink()
    (root / "links").mkdir()
    for name in ("iptables", "ip6tables"):
        (root / "links" / name).symlink_to(root / "usr/sbin/xtables-nft-multi")
    (root / "ready").touch()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """dockerd is the first process of a pid namespace: all that it started ends with it."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _sweep() -> None:
    """The groups that Docker left behind, which are empty now."""
    for top in Path("/sys/fs/cgroup").glob("*/docker"):
        for directory in sorted(top.glob("**/"), reverse=True):
            try:
                directory.rmdir()
            except OSError:
                pass
