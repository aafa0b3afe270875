"""Snapshots of a VM: take, list, look at, delete; going back; what has changed. Not in the contract: ours."""

from __future__ import annotations

from functools import partial

from starlette.responses import Response

from boxwood.server.exchange import Exchange, Operation
from boxwood.server.routes import vms
from boxwood.server.schema import snapshot as wire
from boxwood.server.schema import vm as vm_wire


async def take_snapshot(exchange: Exchange) -> Response:
    body = await exchange.body(wire.SnapshotBody)
    made = await exchange.core.snapshots.take(exchange.caller, exchange.params["id"], body.name, body.description)
    return exchange.answer(wire.snapshot(made), 201)


async def list_snapshots(exchange: Exchange) -> Response:
    found = exchange.core.snapshots.list(exchange.caller, exchange.params["id"])
    return exchange.answer(wire.SnapshotsAnswer(snapshots=[wire.snapshot(one) for one in found]))


async def get_snapshot(exchange: Exchange) -> Response:
    found = exchange.core.snapshots.get(exchange.caller, exchange.params["id"], exchange.params["snapshot"])
    return exchange.answer(wire.snapshot(found))


async def delete_snapshot(exchange: Exchange) -> Response:
    await exchange.core.snapshots.delete(exchange.caller, exchange.params["id"], exchange.params["snapshot"])
    return exchange.answer(wire.DeleteSnapshotAnswer())


async def restore(exchange: Exchange) -> Response:
    body = await exchange.body(wire.RestoreBody)
    done = await exchange.core.snapshots.restore(
        exchange.caller, exchange.params["id"], body.snapshot, force=bool(body.force)
    )
    return vms.answer(exchange, done)


async def diff(exchange: Exchange) -> Response:
    query = exchange.query(wire.DiffQuery)
    found = await exchange.core.states.diff(
        exchange.caller, exchange.params["id"], query.since, query.to,
        path=query.path, text=query.text, limit=query.limit,
    )  # fmt: skip
    return exchange.answer(
        wire.DiffAnswer(changes=[wire.change(one) for one in found.changes], truncated=found.truncated)
    )


async def commit(exchange: Exchange) -> Response:
    body = await exchange.body(wire.CommitBody)
    done = await exchange.core.commits.commit(exchange.caller, exchange.params["id"], body.into, force=bool(body.force))
    return vms.answer(exchange, done)


_operation = partial(Operation, ours=True)
_SNAPSHOTS = "/v1/vms/{id}/snapshots"

OPERATIONS = (
    _operation(
        "takeSnapshot", "POST", _SNAPSHOTS, take_snapshot, "Keep what the VM shows now under a name.",
        answers={201: wire.Snapshot}, body=wire.SnapshotBody,
        errors=("bad_request", "not_found", "already_exists", "conflict", "resource_busy", "payload_too_large",
                "insufficient_resources", "unsupported_operation", "capacity_unavailable"),
    ),
    _operation(
        "listSnapshots", "GET", _SNAPSHOTS, list_snapshots, "The snapshots of a VM, the oldest first.",
        answers={200: wire.SnapshotsAnswer}, errors=("bad_request", "not_found"),
    ),
    _operation(
        "getSnapshot", "GET", f"{_SNAPSHOTS}/{{snapshot}}", get_snapshot, "One snapshot, by name or id.",
        answers={200: wire.Snapshot}, errors=("bad_request", "not_found"),
    ),
    _operation(
        "deleteSnapshot", "DELETE", f"{_SNAPSHOTS}/{{snapshot}}", delete_snapshot,
        "Delete a snapshot. What was forked from it keeps all that it has.",
        answers={200: wire.DeleteSnapshotAnswer}, errors=("bad_request", "not_found"),
    ),
    _operation(
        "restoreVm", "POST", "/v1/vms/{id}/restore", restore, "Take the VM back to one of its snapshots, in place.",
        answers={200: vm_wire.VM}, body=wire.RestoreBody,
        errors=("bad_request", "not_found", "invalid_state", "resource_busy", "insufficient_resources",
                "payload_too_large"),
    ),
    _operation(
        "diffVm", "GET", "/v1/vms/{id}/diff", diff, "What is another in the VM than in a snapshot, or in another VM.",
        answers={200: wire.DiffAnswer}, query=wire.DiffQuery,
        errors=("bad_request", "not_found", "conflict", "resource_busy"),
    ),
    _operation(
        "commitVm", "POST", "/v1/vms/{id}/commit", commit,
        "Fold what the VM has changed since it was forked into what it was forked from. Answers with that VM.",
        answers={200: vm_wire.VM}, body=wire.CommitBody,
        errors=("bad_request", "not_found", "conflict", "invalid_state", "resource_busy", "insufficient_resources",
                "payload_too_large"),
    ),
)  # fmt: skip
