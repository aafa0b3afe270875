"""Other people's published clients, each in a virtual environment of its own, made once below .cache/conformance."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import servers

CACHE = Path(__file__).parents[2] / ".cache/conformance"
CLIENTS = Path(__file__).parent / "clients"


def python_of(package: str, version: str) -> Path:
    """The interpreter of an environment that holds this release and nothing of ours."""
    home = CACHE / f"{package}-{version}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "ready").exists():
            shutil.rmtree(home, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", home], check=True, capture_output=True)
            pip = [home / "bin/python", "-m", "pip", "install", "--quiet", f"{package}=={version}"]
            done = subprocess.run(pip, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.fail(f"cannot install {package} {version}: {done.stderr[-2000:]}", pytrace=False)
            (home / "ready").touch()
    return home / "bin/python"


@pytest.fixture
def client_case(boxwood_server: servers.Server, tmp_path: Path) -> Callable[[str, str, str], None]:
    """`client_case(version, script, case)`: one case of a script in `clients/`, driven with that release of arker."""

    def drive(version: str, script: str, case: str) -> None:
        python = python_of("arker", version)
        environment = {
            "PATH": os.environ["PATH"],
            "ARKER_API_KEY": boxwood_server.key,
            "ARKER_BASE_URL": boxwood_server.url,
            "ARKER_CONTROL_BASE_URL": boxwood_server.url,
            "ARKER_SOURCE": "ubuntu",
            "HOME": str(tmp_path),
        }
        command = [str(python), "-I", str(CLIENTS / f"{script}.py"), version, case]
        done = subprocess.run(
            command,
            env=environment,
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.fail(f"arker {version}, {case}:\n{done.stderr[-6000:]}{done.stdout[-2000:]}", pytrace=False)

    return drive
