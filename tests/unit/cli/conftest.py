"""The command, talking to a stub of the server."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from boxwood.cli.main import execute
from unit.client.stub import KEY, StubServer, server  # noqa: F401


@pytest.fixture
def boxwood(
    server: StubServer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Runs `boxwood ARGS` in `tmp_path`; its standard input is `stdin`, else nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOXWOOD_DATA", str(tmp_path / "no-data"))

    def run(*args: str, stdin: bytes = b"", url: str = server.url) -> subprocess.CompletedProcess[bytes]:
        with monkeypatch.context() as patch:
            patch.setenv("BOXWOOD_URL", url)
            patch.setenv("BOXWOOD_API_KEY", KEY)
            patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            code = execute(args)
        return subprocess.CompletedProcess(list(args), code, *capsysbinary.readouterr())

    return run
