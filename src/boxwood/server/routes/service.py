"""The server itself: health, regions, identity, the welcome and the OpenAPI document."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.responses import Response

import boxwood
from boxwood.engine import levels
from boxwood.server.exchange import JSON, Exchange, Operation
from boxwood.server.schema.common import UNSET
from boxwood.server.schema.service import (
    HealthAnswer,
    ListRegionsAnswer,
    Region,
    WelcomeAnswer,
    WhoamiAnswer,
    layer,
)
from boxwood.server.schema.vm import PLATFORM, PROVIDER, REGION


async def health(exchange: Exchange) -> Response:
    app = exchange.app
    ready = exchange.core.goldens.ready and not app.stopping.is_set()
    answer = HealthAnswer(
        status="ok" if ready else "unavailable",
        timestamp=datetime.now(UTC),
        version=boxwood.__version__,
        isolation={feature.name: feature.active for feature in app.features},
        level=levels.reached(app.features),
        layers=[layer(feature) for feature in app.features],
        preparing=app.preparing if app.preparing is not None and not ready else UNSET,
        problem=app.problem if app.problem is not None and not ready else UNSET,
    )
    return exchange.answer(answer, 200 if ready else 503)


async def list_regions(exchange: Exchange) -> Response:
    here = Region(provider=PROVIDER, region=REGION, endpoint=exchange.base_url, platforms=[PLATFORM])
    return exchange.answer(ListRegionsAnswer(regions=[here]))


async def whoami(exchange: Exchange) -> Response:
    return exchange.answer(WhoamiAnswer(org_id=exchange.caller.org_id, org_name=exchange.caller.org_name))


async def welcome(exchange: Exchange) -> Response:
    return exchange.answer(WelcomeAnswer(name="boxwood", version=boxwood.__version__, docs="/openapi.json"))


async def openapi(exchange: Exchange) -> Response:
    return Response(exchange.app.document, media_type=JSON)


OPERATIONS = (
    Operation(
        "health", "GET", "/v1/health", health, "Is the server ready?",
        answers={200: HealthAnswer, 503: HealthAnswer}, access="public",
    ),
    Operation(
        "listRegions", "GET", "/v1/regions", list_regions, "Where VMs can be: here.",
        answers={200: ListRegionsAnswer}, access="public",
    ),
    Operation("whoami", "GET", "/v1/whoami", whoami, "Whose key is this?", answers={200: WhoamiAnswer}),
    Operation(
        "welcome", "GET", "/", welcome, "What is this?",
        answers={200: WelcomeAnswer}, access="public", prefixes=("",), ours=True,
    ),
    Operation(
        "openapi", "GET", "/openapi.json", openapi, "This document.",
        answers={200: None}, access="public", prefixes=("",), ours=True,
    ),
)  # fmt: skip
