"""Plays scenarios: with published clients, and with our faces."""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scenarios.interpreters import interpreter

HERE = Path(__file__).parent
FACE = "face"
Differences = dict[tuple[str, str], tuple[Any, str]]  # (client, step) → (what is observed instead, why)


def told(name: str) -> tuple[dict[str, Any], Differences]:
    """What is expected at each step, and where clients differ."""
    sys.path.append(str(HERE))  # where scenarios find what they share
    try:
        scenario = runpy.run_path(str(script(name)))
    finally:
        sys.path.remove(str(HERE))
    return scenario["scenario"].expected, scenario["DIFFERENCES"]


def script(name: str) -> Path:
    return HERE / f"{name}.py"


def expected(name: str, client: str) -> dict[str, Any]:
    """`client`: a version, or `FACE`."""
    steps, differences = told(name)
    return {step: differences.get((client, step), (value,))[0] for step, value in steps.items()}


def with_face(name: str, face: str, home: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """What our face observes. :raises AssertionError: it did not come to the scenario's end."""
    module, surroundings = f"boxwood.faces.{face}", {"PATH": os.environ["PATH"], "HOME": str(home), **environment}
    done = interpreter(Path(sys.executable), module).run(script(name), [module], home, surroundings)
    assert done.returncode == 0, done.stderr
    print(done.stderr, file=sys.stderr)
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def check_differences(name: str, clients: set[str]) -> None:
    """Each is of a client and a step that there are, has a reason, and is one."""
    steps, differences = told(name)
    for (client, step), (value, reason) in differences.items():
        assert client in clients and reason, (client, step)
        assert value != steps[step], f"{client} does not differ at {step}"
