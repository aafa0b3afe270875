"""Virtual environments for other people's packages, made once and kept: for the tests and the benchmarks."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

# uv is what makes twenty of them bearable. It does not read pip's settings, so they are told to it.
_AS_PIP = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_INDEX",
    "PIP_FIND_LINKS": "UV_FIND_LINKS",
    "PIP_CERT": "SSL_CERT_FILE",
    "PIP_DEFAULT_TIMEOUT": "UV_HTTP_TIMEOUT",
}


class CannotInstall(Exception):
    """Neither uv nor pip can install it; the text is pip's."""


def python_of(cache: Path, *requirements: str) -> Path:
    """The interpreter of an environment below `cache` that holds exactly these packages."""
    home = cache / "-".join(one.replace("==", "-") for one in requirements)
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{home.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "ready").exists():
            shutil.rmtree(home, ignore_errors=True)
            _make(home, requirements)
            (home / "ready").touch()
    return home / "bin/python"


def _make(home: Path, requirements: tuple[str, ...]) -> None:
    python = home / "bin/python"
    _run([sys.executable, "-m", "venv", "--without-pip", str(home)])
    environment = {**os.environ, "UV_CACHE_DIR": str(home.parent / "uv")}
    environment |= {uv: os.environ[pip] for pip, uv in _AS_PIP.items() if pip in os.environ and uv not in os.environ}
    try:
        _run([sys.executable, "-m", "uv", "pip", "install", "-q", "--python", str(python), *requirements], environment)
    except CannotInstall:  # an index that only pip's settings lead to
        _run([sys.executable, "-m", "pip", "--python", str(python), "install", "-q", *requirements])


def _run(argv: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise CannotInstall(f"{' '.join(argv)}: {done.stderr.strip()[-2000:]}")
