"""`boxwood kubeconfig`: what it prints and writes, and when it does not."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from boxwood.cli.main import execute

AUTHORITY = b"-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data directory of a server that runs: this process."""
    place = tmp_path / "data"
    (place / "kubernetes").mkdir(parents=True)
    (place / "kubernetes/ca.crt").write_bytes(AUTHORITY)
    (place / "root.key").write_text("bxw_secret\n")
    said = {"url": "http://127.0.0.1:1", "pid": os.getpid(), "kubernetes_url": "https://127.0.0.1:2/k8s"}
    (place / "server.json").write_text(json.dumps(said))
    for name in ("BOXWOOD_URL", "BOXWOOD_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BOXWOOD_DATA", str(place))
    return place


def test_what_is_printed(data, capsys):
    assert execute(["kubeconfig"]) == 0
    printed = capsys.readouterr().out
    assert '    server: "https://127.0.0.1:2/k8s"\n' in printed
    assert '    token: "bxw_secret"\n' in printed and 'current-context: "boxwood"\n' in printed
    assert execute(["kubeconfig", "--json"]) == 0
    config = json.loads(capsys.readouterr().out)
    cluster = config["clusters"][0]["cluster"]
    assert cluster["server"] == "https://127.0.0.1:2/k8s"
    assert base64.b64decode(cluster["certificate-authority-data"]) == AUTHORITY
    assert config["contexts"][0]["context"] == {"cluster": "boxwood", "user": "boxwood", "namespace": "default"}


def test_both_forms_say_the_same(data, capsys):
    yaml = pytest.importorskip("yaml")
    execute(["kubeconfig", "--json"])
    config = json.loads(capsys.readouterr().out)
    execute(["kubeconfig"])
    assert yaml.safe_load(capsys.readouterr().out) == config


def test_a_file_that_only_its_owner_reads(data, tmp_path, capsys):
    file = tmp_path / "kc"
    old = os.umask(0)
    try:
        assert execute(["kubeconfig", "--output", str(file)]) == 0
    finally:
        os.umask(old)
    assert file.stat().st_mode & 0o777 == 0o600 and "bxw_secret" in file.read_text()
    assert f"export KUBECONFIG={file}" in capsys.readouterr().err
    assert execute(["kubeconfig", "-o", str(file)]) == 0, "over one of its own"
    assert execute(["kubeconfig", "-o", str(file), "--json"]) == 0
    assert execute(["kubeconfig", "-o", str(file)]) == 0
    assert len(list(tmp_path.iterdir())) == 2, "nothing half made is left"


def test_other_clusters_are_not_written_over(data, tmp_path, capsys):
    file = tmp_path / "config"
    file.write_text("apiVersion: v1\nclusters: [{name: production}]\n")
    assert execute(["kubeconfig", "-o", str(file)]) == 1
    assert "was not written here" in capsys.readouterr().err
    assert "production" in file.read_text()


def test_a_server_without_https_says_why(data, capsys):
    said = json.loads((data / "server.json").read_text())
    del said["kubernetes_url"]
    (data / "server.json").write_text(json.dumps({**said, "kubernetes_problem": "port 2 is taken"}))
    assert execute(["kubeconfig"]) == 1
    assert "port 2 is taken" in capsys.readouterr().err
    (data / "server.json").write_text(json.dumps(said))
    assert execute(["kubeconfig"]) == 1
    assert "arl-kubernetes is switched off" in capsys.readouterr().err


def test_a_server_elsewhere(data, monkeypatch, capsys):
    monkeypatch.setenv("BOXWOOD_URL", "http://box.example:18888")
    monkeypatch.setenv("BOXWOOD_API_KEY", "bxw_theirs")
    assert execute(["kubeconfig"]) == 1
    assert "not a server of this machine" in capsys.readouterr().err
    assert execute(["kubeconfig", "--data", str(data)]) == 0
    assert "bxw_secret" in capsys.readouterr().out
