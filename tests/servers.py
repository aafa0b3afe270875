"""A real server for tests, on a data directory and a port of its own: its program, in a process that has imported it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import guard
import warmserver
from boxwood import Boxwood
from boxwood.engine.daemon import instance

PREPARED = 4  # boxwood.engine.spares makes so many processes ahead
_random = random.SystemRandom()  # whatever tests do to the other one
START_SECONDS = 90.0  # the very first start on a machine makes the host image


class Server:
    """`url`, `key`, `data`; `start`, `stop`, `kill9`, `restart`, `down`. The url stays the same over restarts."""

    def __init__(self, data: Path, **settings: object) -> None:
        self.data = data
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        given = {"kubernetes_port": 0, **settings}  # any: the next one may be another server's
        self._settings = {f"BOXWOOD_{name.upper()}": str(value) for name, value in given.items()}
        self._process: subprocess.Popen[bytes] | warmserver.Started | None = None

    @property
    def key(self) -> str:
        return (self.data / "root.key").read_text().strip()

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def zygote_pid(self) -> int:
        return int(json.loads((self.data / "zygote.json").read_text())["pid"])

    def client(self) -> Boxwood:
        return Boxwood(url=self.url, api_key=self.key)

    def box_pids(self) -> list[int]:
        """The first processes of the boxes that live, and of those prepared ahead."""
        return [pid for pid in guard.descendants(self.zygote_pid) if _is_of_nursery(pid) and _is_first(pid)]

    def unnamed_files(self) -> list[str]:
        """Of the agents of boxes: files without a name, that are on their way in."""
        found = []
        for pid in self.box_pids():
            # A box of another test may end meanwhile, upon which the kernel says this or that.
            with contextlib.suppress(OSError):
                for fd in os.listdir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        target = os.readlink(f"/proc/{pid}/fd/{fd}")
                        if "/#" in target:
                            found.append(target)
        return found

    def boxes(self) -> list[str]:
        """The cgroups of boxes: of those that live, and of up to `PREPARED` that are made ahead of demand."""
        group = f"boxwood-{instance(self.data)}"
        tops = [*Path("/sys/fs/cgroup").glob(group), *Path("/sys/fs/cgroup").glob(f"*/{group}")]
        return sorted({entry.name for top in tops for entry in top.iterdir() if entry.is_dir()})

    # --- life

    def start(self) -> Server:
        assert self._process is None, "the server runs already"
        self._make_directory()
        environment = {**_clean(os.environ), **self._settings}
        with (self.data.parent / f"{self.data.name}.log").open("ab") as log:
            self._process = self._spawn(["--data", str(self.data), "--port", str(self.port)], environment, log)
        self._wait_ready()
        return self

    def _make_directory(self) -> None:
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _spawn(
        self, argv: list[str], given: dict[str, str], log: IO[bytes]
    ) -> subprocess.Popen[bytes] | warmserver.Started:
        return warmserver.start(argv, given, log)

    def kill9(self) -> None:
        """The server dies as if the power had gone; the zygote and its boxes live on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def kill9_all(self) -> None:
        """Server, zygote and every box at once. What v1's freezer holds then, since the zygote had no time to thaw it, goes
        with the next server."""
        zygote, boxes = self.zygote_pid, list(guard.descendants(self.zygote_pid))
        self.kill9()
        for pid in (zygote, *boxes):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        until(lambda: not any(guard.alive(pid) and not _is_frozen(pid) for pid in (zygote, *boxes)), 30)

    def stop(self) -> None:
        """SIGTERM: the server ends in good order; boxes live on."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(60)
        self._process = None

    def restart(self) -> None:
        if self._process is not None:
            self.stop()
        self.start()

    def down(self) -> None:
        """Park everything and end the zygote too, as `boxwood down` does; whatever happened before, nothing remains."""
        if self._process is None:
            self.start()
        self._wait_ready()  # the test may have ended in the middle of a start
        zygote = self.zygote_pid
        status, body = self.request("POST", "/boxwood/down")
        assert status == 200, body
        assert self._process is not None
        assert self._process.wait(60) == 0, self.log()[-4000:]
        self._process = None
        wait_gone(zygote)

    # --- HTTP without the SDK

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and decoded JSON (None: no body)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            sent = None if body is None else json.dumps(body)
            given = {"authorization": f"Bearer {self.key}", "content-type": "application/json", **headers}
            connection.request(method, path, sent, given)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        return answer.status, json.loads(text) if text else None

    def log(self) -> str:
        logs = [self.data.parent / f"{self.data.name}.log", *sorted((self.data / "log").glob("*.log"))]
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')}" for file in logs if file.exists())

    def _wait_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                code, self._process = self._process.returncode, None
                raise AssertionError(f"the server did not start (exit code {code}):\n{self.log()[-4000:]}")
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            written = json.loads((self.data / "server.json").read_text())
            port = urlsplit(written["url"]).port
            return written["pid"] == self.pid and port == self.port and self._healthy()
        except (OSError, ValueError, http.client.HTTPException):
            return False

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/v1/health")
            return connection.getresponse().status == 200
        finally:
            connection.close()


def wait_gone(*pids: int, seconds: float = 30.0) -> None:
    """Until none of these processes runs any more (a zombie does not)."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if guard.alive(pid)]:
        assert time.monotonic() < deadline, f"still alive: {[(pid, guard.name_of(pid)) for pid in left]}"
        time.sleep(0.005)


def free_port() -> int:
    """None of those that the kernel gives to whoever connects: any of them might be somebody's, before the server that
    it is for listens there, or while that is down."""
    first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = _random.randrange(10_000, first_given) if first_given > 12_000 else 0
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])


def _clean(environ: os._Environ[str]) -> dict[str, str]:
    """Without the settings of whoever runs the tests, save where images are."""
    kept = {"BOXWOOD_IMAGES"}
    return {name: value for name, value in environ.items() if not name.startswith("BOXWOOD_") or name in kept}


def _is_first(pid: int) -> bool:
    """Of a process namespace of its own."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
    except OSError:  # it has ended
        return False


def _is_of_nursery(pid: int) -> bool:
    fields = guard.stat(pid)
    try:
        return fields is not None and Path(f"/proc/{int(fields[1])}/comm").read_text() == "nursery\n"
    except OSError:  # it has ended
        return False


def _is_frozen(pid: int) -> bool:
    try:
        return "refrigerator" in Path(f"/proc/{pid}/wchan").read_text()
    except OSError:  # it has ended
        return False


def small_disk(place: Path, mib: int, inodes: int) -> Path:
    """An ext4 of its own in a file, mounted below `place`, for `unmount`: tmpfs would not take an overlay's upper layer on
    every kernel."""
    image, disk = place / "disk.img", place / "disk"
    with image.open("wb") as file:
        file.truncate(mib << 20)
    subprocess.run(["mkfs.ext4", "-q", "-N", str(inodes), str(image)], check=True, capture_output=True)
    disk.mkdir()
    subprocess.run(["mount", "-o", "loop,nosuid,nodev", str(image), str(disk)], check=True, capture_output=True)
    return disk


def unmount(place: Path) -> None:
    """Whoever has started a zygote meanwhile, for another test, has it among its mounts as well for a while; and the
    kernel lets go of loop devices in its own time."""
    subprocess.run(["umount", "--lazy", str(place)], check=True, capture_output=True)


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for what no event tells of."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.01)
