"""The published contract: the OpenAPI document inside the arker 1.3.0 wheel, as its own client reads it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
from jsonschema import Draft202012Validator, FormatChecker

VERSION = "1.3.0"
CACHE = Path(__file__).parents[1] / ".cache" / "contract"


@cache
def document() -> dict[str, Any]:
    """The document; the wheel is fetched once and kept in .cache."""
    wheels = list(CACHE.glob(f"arker-{VERSION}-*.whl"))
    if not wheels:
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"arker=={VERSION}", "-d", str(CACHE)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        wheels = list(CACHE.glob(f"arker-{VERSION}-*.whl"))
    with zipfile.ZipFile(wheels[0]) as wheel:
        return json.loads(wheel.read("arker/_openapi.json"))  # type: ignore[no-any-return]


def operations() -> dict[str, tuple[str, str]]:
    """operationId → method and path."""
    methods = ("get", "post", "put", "patch", "delete")
    return {
        item[method]["operationId"]: (method.upper(), path)
        for path, item in document()["paths"].items()
        for method in methods
        if method in item
    }


@cache
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(
        {**document(), "$ref": f"#/components/schemas/{schema}"}, format_checker=FormatChecker()
    )


def violations(value: Any, schema: str) -> list[str]:
    return [
        f"{'.'.join(map(str, error.path))}: {error.message}"[:500] for error in _validator(schema).iter_errors(value)
    ]


def check(value: Any, schema: str, *ours: str) -> None:
    """`ours`: members that Boxwood adds, which clients ignore."""
    assert violations(_without(value, set(ours)), schema) == []


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {name: _without(member, names) for name, member in value.items() if name not in names}
    if isinstance(value, list):
        return [_without(member, names) for member in value]
    return value


@cache
def _error_schema(code: str) -> str:
    """Of an error body's many schemas the one that its code selects: each has a code of its own."""
    body = document()["components"]["schemas"]["ErrorBody"]
    assert len(body["discriminator"]["mapping"]) == len(body["oneOf"])
    return str(body["discriminator"]["mapping"][code].rpartition("/")[2])


def check_error(body: dict[str, Any], response: httpx2.Response, agent: str) -> None:
    """What every client needs of an error, and the contract wants."""
    error = body["error"]
    assert ("ok" in body) == agent.startswith("Python-urllib/")
    assert body.get("ok", False) is False
    if agent.startswith("python-httpx/"):
        assert set(error) == {"code", "message", "timestamp"}
        return
    assert violations(error, _error_schema(error["code"])) == []
    assert error["request_id"] == response.headers["x-request-id"]
    assert ("retry-after" in response.headers) == ("retry_after_seconds" in error)
    if response.status_code == 401:
        assert response.headers["www-authenticate"].startswith("Bearer")
    if response.status_code == 405:
        assert response.headers["allow"].split(", ") == error["details"]["allowed_methods"]
