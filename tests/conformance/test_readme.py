"""The README's quickstart does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import servers

README = Path(__file__).parents[2] / "README.md"


def test_python_quickstart(boxwood_server: servers.Server) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    environment = {"PATH": os.environ["PATH"], "BOXWOOD_DATA": str(boxwood_server.data)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "hello from a box\ngreen\n\nhello.py\n\n22\n", done.stderr


def test_curl_quickstart(boxwood_server: servers.Server) -> None:
    blocks = re.findall(r"```console\n(.*?)```", README.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "curl" in block]
    lines = [line.removeprefix("$ ") for line in block.splitlines()]
    lines[0] = f'auth="authorization: Bearer {boxwood_server.key}"'
    script = "set -e\n" + "\n".join(lines).replace("localhost:18888", f"127.0.0.1:{boxwood_server.port}")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and '"stdout":"hello\\n/root\\n"' in done.stdout.replace(": ", ":"), done
