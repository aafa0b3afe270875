"""The `boxwood` command in the tests' own process: to start one takes longer than most of what it does."""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Callable

import pytest

import servers
from boxwood.cli.main import execute

Command = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def boxwood(
    boxwood_server: servers.Server, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> Command:
    """Runs `boxwood ARGS` for the server of all tests; its standard input is `stdin`, else nothing."""

    def run(*args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("BOXWOOD_")]:
                patch.delenv(name)
            patch.setenv("BOXWOOD_URL", boxwood_server.url)
            patch.setenv("BOXWOOD_API_KEY", boxwood_server.key)
            patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            code = execute(args)
        return subprocess.CompletedProcess(list(args), code, *capsysbinary.readouterr())

    return run
