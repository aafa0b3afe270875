"""API keys: list, create, revoke."""

from __future__ import annotations

from starlette.responses import Response

from boxwood.server.exchange import Exchange, Operation
from boxwood.server.schema import service as wire


async def list_api_keys(exchange: Exchange) -> Response:
    keys = await exchange.core.keys.list(exchange.caller)
    return exchange.answer(wire.ListApiKeysAnswer(api_keys=[wire.api_key(key) for key in reversed(keys)]))


async def create_api_key(exchange: Exchange) -> Response:
    body = await exchange.body(wire.CreateApiKeyBody)
    made = await exchange.core.keys.create(
        exchange.caller, body.name, exchange.caller.role, ttl_default=body.ttl_default, ttl_most=body.ttl_most,
        expires_in=body.expires_in,
    )  # fmt: skip
    return exchange.answer(wire.api_key(made), 201)


async def revoke_api_key(exchange: Exchange) -> Response:
    await exchange.core.keys.revoke(exchange.caller, exchange.params["api_key_id"])
    return Response(status_code=204)


OPERATIONS = (
    Operation(
        "listApiKeys", "GET", "/v1/api-keys", list_api_keys, "The organisation's keys, newest first.",
        answers={200: wire.ListApiKeysAnswer},
    ),
    Operation(
        "createApiKey", "POST", "/v1/api-keys", create_api_key, "Make a key; the answer alone holds it.",
        answers={201: wire.ApiKey}, body=wire.CreateApiKeyBody,
        errors=("bad_request", "not_found", "conflict", "payload_too_large", "unsupported_operation"),
    ),
    Operation(
        "revokeApiKey", "DELETE", "/v1/api-keys/{api_key_id}", revoke_api_key, "From now on the key is nobody's.",
        answers={204: None}, errors=("not_found",),
    ),
)  # fmt: skip
