"""`boxwood up` and `down`, as far as no box is needed: what runs already, what is gone, what is left over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from boxwood.cli.output import Progress
from boxwood.cli.server import LEVELS
from boxwood.core.config import Config
from boxwood.engine import levels
from unit.client.stub import StubServer, error


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Stands for the server's process: lives until it is told to end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as running:
        yield running
        running.kill()


@pytest.fixture
def data(server: StubServer, process: subprocess.Popen[bytes], tmp_path: Path) -> Path:
    said = {"url": server.url, "pid": process.pid, "version": "0", "started_at": time.time()}
    (tmp_path / "server.json").write_text(json.dumps(said))
    (tmp_path / "root.key").write_text("bxw_root")
    return tmp_path


def test_up_where_a_server_runs(server: StubServer, boxwood, data: Path) -> None:
    for more in ([], ["--detach"]):
        done = boxwood("up", "--data", str(data), *more)
        assert done.returncode == 0
        assert b"already running: " + server.url.encode() in done.stdout
    assert json.loads(boxwood("up", "--data", str(data), "--json").stdout)["url"] == server.url


def test_up_where_a_server_runs_below_the_level_that_is_required(server: StubServer, boxwood, data: Path) -> None:
    disk = {"name": "disk limit", "active": False, "why": "no quotas", "fix": "boxwood storage init", "level": "full"}
    health = {"status": "ok", "timestamp": "t", "level": "limits", "layers": [disk]}
    for level, code in (("basic", 0), ("limits", 0), ("full", 1)):
        server.script("GET /v1/health", (200, health))
        done = boxwood("up", "--data", str(data), "--require", level)
        assert done.returncode == code
        assert (b"disk limit: no quotas (boxwood storage init)" in done.stderr) is (code == 1)
    refused = boxwood("up", "--data", str(data), "--require", "perfect")
    assert refused.returncode == 1 and b"basic, limits, full" in refused.stderr


def test_levels_are_those_of_the_engine() -> None:
    assert tuple(levels.LEVELS) == LEVELS


def test_up_hands_its_settings_on(boxwood, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[dict[str, str]] = []

    def start(command: list[str], env: dict[str, str], data: Path, json: bool) -> int:
        handed.append({name: value for name, value in env.items() if name.startswith("BOXWOOD_")})
        return 0

    monkeypatch.setattr("boxwood.cli.server._up_detached", start)
    monkeypatch.setenv("BOXWOOD_NETWORK_ALLOW", "10.9.9.9")
    up = ("up", "--detach", "--data", str(tmp_path))
    boxwood(*up)
    assert handed[0]["BOXWOOD_NETWORK_ALLOW"] == "10.9.9.9"
    assert not {"BOXWOOD_NETWORK", "BOXWOOD_SHARE_CLIENT_CONFIG", "BOXWOOD_IMAGES"} & handed[0].keys()
    boxwood(*up, "--network", "none", "--network-allow", "10.0.0.1:443", "--network-allow", "mirror.example",
            "--share-client-config", "--require", "limits")  # fmt: skip
    config = Config.load(tmp_path, environ=handed[1])
    assert (config.network, config.network_allow) == ("none", ("10.0.0.1:443", "mirror.example"))
    assert config.share_client_config and config.require == "limits"


def test_down_waits_for_the_end(server: StubServer, boxwood, data: Path, process: subprocess.Popen[bytes]) -> None:
    def end(request: object) -> tuple[int, object]:
        process.kill()
        return 200, {"down": True}

    server.script("POST /boxwood/down", end)
    done = boxwood("down", "--data", str(data))
    assert (done.returncode, done.stderr) == (0, b"")
    assert server.last.headers["authorization"] == "Bearer bxw_root"
    assert process.wait() != 0


def test_down_that_is_refused(server: StubServer, boxwood, data: Path) -> None:
    server.script("POST /boxwood/down", (403, error("forbidden", "not your server")))
    done = boxwood("down", "--data", str(data))
    assert (done.returncode, done.stderr) == (1, b"boxwood: not your server\n")


def test_down_where_nothing_runs(boxwood, tmp_path: Path) -> None:
    done = boxwood("down", "--data", str(tmp_path))
    assert (done.returncode, done.stdout) == (0, f"no server runs for {tmp_path}\n".encode())
    assert json.loads(boxwood("down", "--data", str(tmp_path), "--json").stdout)["state"] == "down"


def test_down_where_only_the_zygote_lives(boxwood, tmp_path: Path) -> None:
    (tmp_path / "zygote.json").write_text(json.dumps({"pid": os.getpid()}))
    done = boxwood("down", "--data", str(tmp_path))
    assert done.returncode == 1
    assert f"boxwood up --data {tmp_path}".encode() in done.stderr


def test_up_that_cannot_start_says_why(boxwood, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = boxwood("up", "--detach", "--data", str(tmp_path / "file"))
    assert done.returncode == 1
    assert str(tmp_path / "file").encode() in done.stderr


def test_doctor_answers(boxwood) -> None:
    assert b"--json" in boxwood("doctor", "--help").stdout


def test_progress_is_one_line_for_each_tenth_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    for step in ("files\x1b[2J", "packages"):
        for percent in range(0, 100, 2):
            progress.tell(step, percent / 100)
    progress.end()
    shown = capsys.readouterr().err
    assert shown.count("\n") == 20
    assert "\x1b" not in shown
