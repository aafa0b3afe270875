"""What this protocol's callers may write, and the names that are made for them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

from boxwood.core import words as core_words
from boxwood.core.errors import BadRequest, CoreError
from boxwood.core.goldens import IMAGE_CHARACTERS, UnknownImage
from boxwood.core.model import ForkRequest, Resources
from boxwood.dialects.arl import quantities
from boxwood.dialects.arl_gateway.envelope import NoSession
from boxwood.server.exchange import Exchange

NAMESPACE = "default"  # of what names none: the gateway's own
WORKSPACE = "/workspace"
MOST_SECONDS = 366 * 86400
MOST_STEPS = 10_000
SESSION_CHARACTERS = 63

_SESSION = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_OPERATION = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_.-][A-Za-z0-9_.-]{0,252}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def session_id(text: str) -> str:
    """NoSession: nothing of this name can be there."""
    if not _SESSION.fullmatch(text):
        raise NoSession(text)
    return text


def new_session_id(image: str) -> str:
    """`python-3-12-0123456789abcdef`, at most 63 characters."""
    tail = secrets.token_hex(8)
    slug = re.sub(r"[^a-z0-9]+", "-", image.removesuffix(":latest").rpartition("/")[2].lower())
    slug = slug[: SESSION_CHARACTERS - len(tail) - 1].strip("-")
    return f"{slug}-{tail}" if slug else tail


def operation_id(text: str) -> str:
    if not _OPERATION.fullmatch(text):
        raise BadRequest("operationID: 1 to 128 letters, digits, '.', '_', ':' or '-'")
    return text


def label(field: str, text: str) -> str:
    """A value of a Kubernetes label: of a profile, an experiment."""
    if not _LABEL.fullmatch(text):
        raise BadRequest(f"{field}: at most 63 letters, digits, '.', '_' or '-', a letter or digit first and last")
    return text


def idle_seconds(given: int | None, default: int) -> int:
    """What is not more than 0 is as good as nothing."""
    if given is None or given <= 0:
        return default
    if given > MOST_SECONDS:
        raise BadRequest(f"idleTimeoutSeconds: at most {MOST_SECONDS}")
    return given


def normalised(image: str) -> str:
    """As the gateway tells images: without Docker's own registry, with a tag. BadRequest."""
    if len(image) > IMAGE_CHARACTERS or not image.isascii() or not image.isprintable():
        raise BadRequest(f"image: 1 to {IMAGE_CHARACTERS} printable ASCII characters")
    for prefix in ("docker.io/library/", "docker.io/"):
        image = image.removeprefix(prefix)
    last = image.rpartition("/")[2]
    return image if "@" in image or ":" in last else f"{image}:latest"


def source(exchange: Exchange, image: str) -> ForkRequest:
    """What is to be forked for an image, by any of the ways of writing it. UnknownImage."""
    full = normalised(image)
    refused: CoreError = UnknownImage(image)
    for name in dict.fromkeys((image, full, full.removesuffix(":latest"))):
        try:
            return exchange.core.goldens.source(name)
        except UnknownImage:
            pass
    raise refused


def variables(field: str, env: Mapping[str, str]) -> dict[str, str]:
    for name in env:
        if not _VARIABLE.fullmatch(name):
            raise BadRequest(f"{field}: {name[:80]!r} is no name of an environment variable")
    core_words.environment(env)
    return dict(env)


def sha256(text: str) -> str:
    if not _SHA256.fullmatch(text):
        raise BadRequest("X-ARL-SHA256: 64 hexadecimal digits")
    return text.lower()


def resources(given: Mapping[str, Mapping[str, str | int | float] | None] | None) -> Resources:
    """Of Kubernetes' `limits`, and of `requests` where there is no limit. BadRequest."""
    asked: dict[str, str | int | float] = {}
    for part in ("requests", "limits"):
        asked |= (given or {}).get(part) or {}
    try:
        return Resources(
            vcpu=quantities.vcpus(asked["cpu"]) if "cpu" in asked else None,
            memory_mib=quantities.mib(asked["memory"]) if "memory" in asked else None,
        )
    except ValueError as error:
        raise BadRequest(f"resources: {error}") from None
