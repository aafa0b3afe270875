"""What only the server's operator may ask, who shows the key of the data directory: images and the end."""

from __future__ import annotations

import logging
from pathlib import Path

from starlette.responses import Response

from boxwood.core.errors import BadRequest
from boxwood.server.exchange import Exchange, Operation
from boxwood.server.schema import service as wire

log = logging.getLogger("boxwood.server")


async def import_image(exchange: Exchange) -> Response:
    body = await exchange.body(wire.ImportImageBody)
    if not body.path.startswith("/") or "\0" in body.path:
        raise BadRequest("path: must be absolute", [("path", "must be absolute")])
    made = await exchange.core.goldens.import_rootfs(body.name, Path(body.path), replace=bool(body.replace))
    return exchange.answer(wire.ImportImageAnswer(vm_id=made.vm_id, name=made.name))


async def down(exchange: Exchange) -> Response:
    app = exchange.app
    app.stopping.set()
    log.info("going down: parking every VM")
    try:
        await exchange.core.shutdown()
    finally:  # there is nothing left to serve either way
        if app.on_down is not None:
            app.on_down()
    return exchange.answer(wire.DownAnswer())


OPERATIONS = (
    Operation(
        "importImage", "POST", "/boxwood/images", import_image,
        "Make a golden of a root file system on the server's machine.",
        answers={200: wire.ImportImageAnswer}, body=wire.ImportImageBody, access="operator", prefixes=("",), ours=True,
        errors=("bad_request", "already_exists", "payload_too_large"),
    ),
    Operation(
        "down", "POST", "/boxwood/down", down, "Park every VM and end the server.",
        answers={200: wire.DownAnswer}, access="operator", prefixes=("",), ours=True,
    ),
)  # fmt: skip
