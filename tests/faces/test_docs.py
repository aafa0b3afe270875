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
    names = ("PATH", "ARKER_BASE_URL", "ARKER_API_KEY", "AGENTKERNEL_BASE_URL", "AGENTKERNEL_API_KEY")
    environment = {name: os.environ[name] for name in names}
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
