"""The examples of docs/faces.md do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import servers

pytestmark = pytest.mark.root
DOCS = Path(__file__).parents[2] / "docs/faces.md"


def printed(face: str) -> str:
    (program,) = (
        block for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if f"faces.{face}" in block
    )
    names = [
        f"{face}_{name}" for face in ("ARKER", "AGENTKERNEL", "BOXWOOD") for name in ("BASE_URL", "URL", "API_KEY")
    ]
    environment = {name: os.environ[name] for name in ("PATH", *names) if name in os.environ}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_arker(real: servers.Server) -> None:
    assert printed("arker") == (
        "2\nb'1\\n2\\n3\\n'\nb'3\\n1\\n2\\n' True\nnot_found file not found: /etc/nothing\n"
    )  # fmt: skip


def test_agentkernel(real: servers.Server) -> None:
    lines = printed("agentkernel").splitlines()
    assert lines[:2] == ["two words", ""] and lines[2].startswith("started {'command': ['sh', ")
    assert lines[3:] == [
        "output {'data': 'begun\\n', 'stream': 'stdout'}",
        "output {'data': 'done\\n', 'stream': 'stdout'}",
        "done {'exit_code': 0, 'success': True}",
        "kept",
        "",
        "500 1 Command exited with code 1: ",
    ]


def test_arl(real: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOXWOOD_URL", real.url)
    monkeypatch.setenv("BOXWOOD_API_KEY", real.key)
    lines = printed("arl").splitlines()
    assert real.request("DELETE", "/k8s/apis/arl.infra.io/v1alpha1/namespaces/default/warmpools/python-pool")[0] == 200
    assert lines == [
        "exit code 0",
        "File created: /workspace/a.py",
        "Hello!",
        "",
        "a command did not end within 0.5 s, and was killed",
        "404 WarmPool 'nothing' not found in namespace 'default'; there are: python-pool",
    ]
