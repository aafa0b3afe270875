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


def node_home(package: str, version: str) -> Path:
    """A directory whose node_modules holds this release."""
    home = CACHE / f"node-{package}-{version}"
    home.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "ready").exists():
            (home / "package.json").write_text('{"private": true}')
            npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", f"{package}@{version}"]
            done = subprocess.run(npm, cwd=home, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.fail(f"cannot install {package} {version}: {done.stderr[-2000:]}", pytrace=False)
            (home / "ready").touch()
    return home


def drive(package: str, version: str, script: str, case: str, home: Path, **environment: str) -> str:
    """What one case of a script in `clients/` prints, driven with that release."""
    command = [str(python_of(package, version)), "-I", str(CLIENTS / f"{script}.py"), version, case]
    done = subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], "HOME": str(home), **environment},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{package} {version}, {case}:\n{done.stderr[-6000:]}{done.stdout[-2000:]}", pytrace=False)
    return done.stdout


@pytest.fixture
def client_case(boxwood_server: servers.Server, tmp_path: Path) -> Callable[[str, str, str], None]:
    """`client_case(version, script, case)`: with that release of arker."""

    def run(version: str, script: str, case: str) -> None:
        drive(
            "arker",
            version,
            script,
            case,
            tmp_path,
            ARKER_API_KEY=boxwood_server.key,
            ARKER_BASE_URL=boxwood_server.url,
            ARKER_CONTROL_BASE_URL=boxwood_server.url,
            ARKER_SOURCE="ubuntu",
        )

    return run


@pytest.fixture
def agentkernel_case(boxwood_server: servers.Server, tmp_path: Path) -> Callable[[str, str], str]:
    """`agentkernel_case(version, case)`: with that release of agentkernel-sdk; what the case prints."""

    def run(version: str, case: str) -> str:
        environment = {"AGENTKERNEL_API_KEY": boxwood_server.key, "AGENTKERNEL_BASE_URL": boxwood_server.url}
        return drive("agentkernel-sdk", version, "agentkernel_sdk", case, tmp_path, **environment)

    return run


@pytest.fixture
def agentkernel_node(boxwood_server: servers.Server, tmp_path: Path) -> Callable[[str], None]:
    """`agentkernel_node(case)`: with npm's agentkernel 0.18.1."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        pytest.skip("needs Node.js")
    home = node_home("agentkernel", "0.18.1")

    def run(case: str) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "AGENTKERNEL_API_KEY": boxwood_server.key,
            "AGENTKERNEL_BASE_URL": boxwood_server.url,
        }
        command = [node, str(CLIENTS / "agentkernel_node.cjs"), str(home), case]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"agentkernel of npm, {case}:\n{done.stderr[-6000:]}", pytrace=False)

    return run
