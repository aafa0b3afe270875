"""The server's storage, for its operator: who takes how much, whether all is whole, and what nobody needs."""

from __future__ import annotations

from starlette.responses import Response

from boxwood.core.refusals import of_engine
from boxwood.engine.api import EngineError
from boxwood.server.exchange import Exchange, Operation
from boxwood.server.schema import storage as wire


async def show(exchange: Exchange) -> Response:
    try:
        return exchange.answer(wire.usage(await exchange.core.upkeep.usage()))
    except EngineError as error:
        raise of_engine(error, "resource") from error


async def verify(exchange: Exchange) -> Response:
    try:
        count, found = await exchange.core.upkeep.verify()
    except EngineError as error:
        raise of_engine(error, "resource") from error
    problems = [wire.StorageProblem(layer_id=one.layer_id, vm_ids=one.vms, problem=one.problem) for one in found]
    return exchange.answer(wire.VerifyStorageAnswer(layers=count, problems=problems))


async def collect(exchange: Exchange) -> Response:
    dry_run = bool((await exchange.body(wire.CollectStorageBody)).dry_run)
    try:
        found = await exchange.core.upkeep.collect(dry_run=dry_run)
    except EngineError as error:
        raise of_engine(error, "resource") from error
    return exchange.answer(wire.CollectStorageAnswer(dry_run=dry_run, layer_ids=found.layers, bytes=found.bytes))


OPERATIONS = (
    Operation(
        "showStorage", "GET", "/boxwood/storage", show, "How much of the disk each VM takes.",
        answers={200: wire.StorageAnswer}, access="operator", prefixes=("",), ours=True,
    ),
    Operation(
        "verifyStorage", "POST", "/boxwood/storage/verify", verify, "Look through all layers.",
        answers={200: wire.VerifyStorageAnswer}, access="operator", prefixes=("",), ours=True,
    ),
    Operation(
        "collectStorage", "POST", "/boxwood/storage/gc", collect, "Remove layers that nothing refers to.",
        answers={200: wire.CollectStorageAnswer}, body=wire.CollectStorageBody, access="operator", prefixes=("",),
        ours=True,
    ),
)  # fmt: skip
