"""Which server, which key: and that no key goes to a server that it does not belong to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from boxwood import BadRequest, Boxwood, ConnectionFailed, Unauthorized
from boxwood.client.discovery import find, read_server
from unit.client.stub import KEY, StubServer

LOCAL = "http://127.0.0.1:18888"


def data_directory(path: Path, url: str = LOCAL, pid: int | None = None, started_at: object = None) -> Path:
    path.mkdir(exist_ok=True)
    said = {"url": url, "pid": pid or os.getpid(), "version": "0", "started_at": started_at or time.time()}
    (path / "server.json").write_text(json.dumps(said))
    (path / "root.key").write_text("bxw_root\n")
    return path


def test_the_local_server_and_its_key(tmp_path: Path) -> None:
    env = {"BOXWOOD_DATA": str(data_directory(tmp_path / "data"))}
    assert find(env=env) == (LOCAL, "bxw_root")
    assert find(LOCAL + "/", env=env) == (LOCAL, "bxw_root")


def test_a_home_directory_is_looked_into(tmp_path: Path) -> None:
    (tmp_path / ".local/share").mkdir(parents=True)
    data_directory(tmp_path / ".local/share/boxwood", "http://127.0.0.1:5")
    assert find("http://127.0.0.1:5", env={"HOME": str(tmp_path)}).api_key == "bxw_root"


def test_the_environment_names_both() -> None:
    env = {"BOXWOOD_URL": "https://box.example:8443/api/", "BOXWOOD_API_KEY": KEY}
    assert find(env=env) == ("https://box.example:8443/api", KEY)
    assert find("https://box.example:8443", env=env).api_key == KEY


def test_arguments_come_first(tmp_path: Path) -> None:
    env = {"BOXWOOD_URL": "http://a", "BOXWOOD_API_KEY": "k", "BOXWOOD_DATA": str(data_directory(tmp_path / "data"))}
    assert find("http://b", "mine", env) == ("http://b", "mine")


@pytest.mark.parametrize(
    "url", ["https://box.example", "http://box.example:81", "http://box.example.evil", "http://other"]
)
def test_the_key_of_the_environment_goes_to_no_other_server(url: str) -> None:
    with pytest.raises(Unauthorized, match="belongs to BOXWOOD_URL"):
        find(url, env={"BOXWOOD_URL": "http://box.example", "BOXWOOD_API_KEY": KEY, "BOXWOOD_DATA": "/nonexistent"})


@pytest.mark.parametrize("url", ["http://127.0.0.1:18889", "http://localhost:18888", "http://example.com:18888"])
def test_the_root_key_goes_to_its_own_server_only(tmp_path: Path, url: str) -> None:
    with pytest.raises(Unauthorized, match="no API key for"):
        find(url, env={"BOXWOOD_DATA": str(data_directory(tmp_path / "data"))})


def test_a_dead_servers_word_is_not_believed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    env = {"BOXWOOD_DATA": str(data_directory(tmp_path / "data", pid=gone.pid))}
    with pytest.raises(ConnectionFailed, match=r"boxwood up.*has ended"):
        find(env=env)
    with pytest.raises(Unauthorized):
        find(LOCAL, env=env)


def test_a_process_that_got_the_dead_servers_number_is_not_the_server(tmp_path: Path) -> None:
    env = {"BOXWOOD_DATA": str(data_directory(tmp_path / "data", started_at="2020-01-01T00:00:00Z"))}
    with pytest.raises(ConnectionFailed):
        find(env=env)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_word_is_not_believed(tmp_path: Path) -> None:
    data = data_directory(tmp_path / "data")
    os.chown(data / "server.json", 12345, 12345)
    with pytest.raises(ConnectionFailed):
        find(env={"BOXWOOD_DATA": str(data)})


def test_a_start_in_ticks_is_exact(tmp_path: Path) -> None:
    data = data_directory(tmp_path / "data", started_at="2020-01-01T00:00:00Z")
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    for started, alive in ((ticks, True), (ticks + 1, False)):
        said = json.loads((data / "server.json").read_text())
        (data / "server.json").write_text(json.dumps(said | {"started": started}))
        server = read_server(data)
        assert server is not None
        assert server.alive is alive


@pytest.mark.parametrize("content", ["", "[]", "{", '{"url": 3}', '{"url": "file:///etc/passwd", "pid": 1}'])
def test_a_broken_server_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "server.json").write_text(content)
    with pytest.raises(ConnectionFailed, match="boxwood up"):
        find(env={"BOXWOOD_DATA": str(tmp_path)})


def test_nothing_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailed, match="boxwood up"):
        Boxwood()
    with pytest.raises(ConnectionFailed, match="boxwood up"):
        find(env={"BOXWOOD_DATA": str(tmp_path), "BOXWOOD_API_KEY": KEY})


@pytest.mark.parametrize(
    "url", ["localhost:18888", "ftp://a", "http://", "http://u:p@a", "http://a/?q=1", "http://a:99999", "http://[::1"]
)
def test_what_is_no_url_of_a_server(url: str) -> None:
    with pytest.raises(BadRequest):
        find(url, KEY, {})


@pytest.mark.parametrize("key", ["a\nb", "ä", " ", "a b"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(Unauthorized):
        find("http://a", key, {})


def test_a_proxy_of_the_environment_does_not_see_a_local_key(
    server: StubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    server.script("GET /v1/whoami", (200, {"org_id": "o", "org_name": "O"}))
    with Boxwood(server.url, KEY) as box:
        assert box.whoami().org_id == "o"
