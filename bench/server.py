"""A Boxwood server of the bench's own, on a temporary data directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from boxwood import Boxwood, BoxwoodError

START_SECONDS = 120.0  # the first one on a machine makes the host image


class Server:
    """`uid`: whose it is, if not root's; the directory above `data` is his."""

    def __init__(self, data: Path, uid: int = 0) -> None:
        self.data = data
        self._uid = uid
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def start(self, *, start_seconds: float = START_SECONDS, **settings: object) -> None:
        """`settings`: those of core/config.py."""
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chown(self.data, self._uid, self._uid)
        given = {f"BOXWOOD_{name.upper()}": str(value) for name, value in settings.items()}
        command = [sys.executable, "-m", "boxwood.server", "--data", str(self.data), "--port", "0"]
        with (self.data.parent / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env={**os.environ, **given}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                user=self._uid or None, group=self._uid or None, extra_groups=[] if self._uid else None,
            )  # fmt: skip
        deadline = time.monotonic() + start_seconds
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"bench: the server did not start:\n{(self.data.parent / 'server.log').read_text()}")
            time.sleep(0.02)

    def client(self) -> Boxwood:
        return Boxwood(self.url, self.key)

    @property
    def key(self) -> str:
        return (self.data / "root.key").read_text().strip()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def zygote_pid(self) -> int:
        return int(self._state("zygote.json")["pid"])

    def stop(self) -> None:
        """Boxes live on."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def down(self) -> None:
        """The end of the server and of all boxes."""
        if self._process is None:
            return
        with self.client() as box:
            box.down()
        self._process.wait(60)
        self._process = None

    def _ready(self) -> bool:
        try:
            written = self._state("server.json")
            if written["pid"] != self.pid:
                return False
            self.url = written["url"]
            with self.client() as box:
                return box.health().status == "ok"
        except (OSError, ValueError, BoxwoodError):
            return False

    def _state(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data / name).read_text())
        return found
