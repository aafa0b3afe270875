"""The server itself on the wire: health, regions, identity, API keys, and what only its operator may ask."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta

from boxwood.core import model
from boxwood.engine.api import Feature
from boxwood.server.schema.common import UNSET, Answer, Request, UnsetType

_DEFAULT = "Seconds that VMs live which are made with it and not told otherwise."
_MOST = "Seconds that VMs live at most which are made with it."


class Preparing(Answer, frozen=True, kw_only=True):
    step: str
    fraction: Annotated[float, Meta(ge=0, le=1)]


class IsolationLayer(Answer, frozen=True, kw_only=True):
    name: str
    active: bool
    required: Annotated[bool, Meta(description="No VM runs without it.")]
    why: Annotated[str, Meta(description="What it is good for, or why it is missing.")]
    fix: Annotated[str | None, Meta(description="How to get it, where it is missing.")]
    level: Annotated[str | None, Meta(description="The first level that needs it.")]


class HealthAnswer(Answer, frozen=True, kw_only=True):
    status: Literal["ok", "unavailable"]
    timestamp: datetime
    version: str
    isolation: Annotated[dict[str, bool], Meta(description="Layers of isolation: which are active.")]
    level: Annotated[str, Meta(description="The highest that is met: none, basic, limits or full.")]
    layers: Annotated[list[IsolationLayer], Meta(description="The same layers, with reasons.")]
    preparing: Preparing | UnsetType = UNSET
    problem: str | UnsetType = UNSET


class WelcomeAnswer(Answer, frozen=True, kw_only=True):
    name: str
    version: str
    docs: str


class Region(Answer, frozen=True, kw_only=True):
    provider: str
    region: str
    endpoint: str
    platforms: list[str]


class ListRegionsAnswer(Answer, frozen=True, kw_only=True):
    regions: list[Region]


class WhoamiAnswer(Answer, frozen=True, kw_only=True):
    org_id: str
    org_name: str


class CreateApiKeyBody(Request, frozen=True, kw_only=True):
    name: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    scopes: Any = None
    ttl_default: Annotated[float, Meta(ge=0, le=1e9, description=_DEFAULT)] | None = None
    ttl_most: Annotated[float, Meta(ge=0, le=1e9, description=_MOST)] | None = None
    expires_in: Annotated[float, Meta(ge=0, le=1e9, description="Seconds until it is nobody's.")] | None = None

    later: ClassVar = {"scopes": None}


class ApiKey(Answer, frozen=True, kw_only=True):
    api_key_id: str
    name: str | None
    prefix: Annotated[str, Meta(description="How the key itself begins.")]
    role: str
    scopes: list[dict[str, str]]
    vm_id: None
    pool_id: None
    action: None
    created_at: datetime
    ttl_default: Annotated[float, Meta(description=_DEFAULT)] | UnsetType = UNSET
    ttl_most: Annotated[float, Meta(description=_MOST)] | UnsetType = UNSET
    expires_at: datetime | UnsetType = UNSET
    key: Annotated[str, Meta(description="Shown this once.")] | UnsetType = UNSET


class ListApiKeysAnswer(Answer, frozen=True, kw_only=True):
    api_keys: list[ApiKey]


class ImportImageBody(Request, frozen=True, kw_only=True):
    """`path`: a directory or a tar archive on the server's machine."""

    name: str
    path: str
    replace: bool | None = None


class ImportImageAnswer(Answer, frozen=True, kw_only=True):
    vm_id: str
    name: str | None


class DownAnswer(Answer, frozen=True, kw_only=True):
    down: bool = True


def layer(of: Feature) -> IsolationLayer:
    fix = of.fix if of.fix and not of.active else None
    return IsolationLayer(
        name=of.name, active=of.active, required=of.required, why=of.why, fix=fix, level=of.level or None
    )


def api_key(of: model.ApiKey) -> ApiKey:
    return ApiKey(
        api_key_id=of.key_id,
        name=of.name,
        prefix=of.prefix,
        role=of.role,
        scopes=[],
        vm_id=None,
        pool_id=None,
        action=None,
        created_at=of.created_at,
        ttl_default=UNSET if of.ttl_default is None else of.ttl_default,
        ttl_most=UNSET if of.ttl_most is None else of.ttl_most,
        expires_at=UNSET if of.expires_at is None else of.expires_at,
        key=of.key if of.key is not None else UNSET,
    )
