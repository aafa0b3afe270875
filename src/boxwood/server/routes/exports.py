"""VMs as files: out of the server, and into it. Not in the contract: ours."""

from __future__ import annotations

from functools import partial

from starlette.responses import Response

from boxwood.core import lifetimes
from boxwood.server.exchange import Exchange, Operation
from boxwood.server.routes import vms
from boxwood.server.schema import snapshot as wire
from boxwood.server.schema import vm as vm_wire
from boxwood.server.stream import PiecesResponse


async def export(exchange: Exchange) -> Response:
    query = exchange.query(wire.ExportQuery)
    pieces = await exchange.core.exports.export(exchange.caller, exchange.params["id"], full=query.full)
    return PiecesResponse(pieces, "application/zstd", exchange.app.stopping, filename="vm.tar.zst")


async def import_vm(exchange: Exchange) -> Response:
    query = exchange.query(wire.ImportQuery)
    lifetimes.check_new(exchange.caller, query.ttl)
    made = await exchange.core.exports.import_(exchange.caller, exchange.chunks(), name=query.name, ttl=query.ttl)
    return vms.answer(exchange, made, 201)


_operation = partial(Operation, ours=True)

OPERATIONS = (
    _operation(
        "exportVm", "GET", "/v1/vms/{id}/export", export, "The VM as one file: a tar archive, packed with zstd.",
        answers={200: bytes}, query=wire.ExportQuery,
        errors=("bad_request", "not_found", "resource_busy"),
    ),
    _operation(
        "importVm", "POST", "/v1/vms/import", import_vm, "A VM of such a file, which is the body as it is.",
        answers={201: vm_wire.VM}, query=wire.ImportQuery,
        errors=("bad_request", "already_exists", "conflict", "insufficient_resources", "unsupported_operation",
                "capacity_unavailable"),
    ),
)  # fmt: skip
