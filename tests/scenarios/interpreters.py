"""Interpreters that have imported a client (`warm.py`), kept for all the scripts of a test session."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

WARM = Path(__file__).parent / "warm.py"


@dataclass(frozen=True)
class Ran:
    """A script that has ended. `seen`: class → method → outcomes, as `recorder.py` notes them."""

    returncode: int
    stdout: str
    stderr: str
    seen: dict[str, dict[str, list[str]]]


class Interpreter:
    """One process, and one more for each script while it runs."""

    def __init__(self, python: Path, module: str) -> None:
        ours = str(python) == sys.executable
        isolated = [] if ours else ["-I"]
        kept = ("PATH", "PYTHONPATH") if ours else ("PATH",)
        self._process = subprocess.Popen(
            [str(python), *isolated, str(WARM), module],
            env={name: os.environ[name] for name in kept if name in os.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, script: Path, argv: Sequence[str], home: Path, environment: Mapping[str, str]) -> Ran:
        with TemporaryDirectory(prefix="boxwood-script-") as place:
            files = {name: Path(place) / name for name in ("stdout", "stderr", "seen")}
            request = {
                **{name: str(path) for name, path in files.items()},
                "script": str(script),
                "argv": list(argv),
                "cwd": str(home),
                "environment": dict(environment),
            }
            code = self._ask(json.dumps(request))
            stdout, stderr = (files[name].read_text() if files[name].exists() else "" for name in ("stdout", "stderr"))
            seen = json.loads(files["seen"].read_text()) if files["seen"].exists() else {}
        return Ran(code, stdout, stderr, seen)

    def _ask(self, line: str) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            assert answer, "the interpreter has ended"
            return int(answer)
        except BaseException:  # also the end of the test's time: what runs is to end, and is not to answer the next one
            self.close()
            raise

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Also ends the script that runs."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass
        self._process.wait()


_kept: dict[tuple[Path, str], Interpreter] = {}


def interpreter(python: Path, module: str) -> Interpreter:
    """The one of this session, made at its first use."""
    known = _kept.get((python, module))
    if known is None or not known.alive:
        known = _kept[python, module] = Interpreter(python, module)
    return known


def close_all() -> None:
    for known in _kept.values():
        known.close()
    _kept.clear()
