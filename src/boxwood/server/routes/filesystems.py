"""Filesystems and their mounts; `…/syncs` is what clients before 1.2.8 call mounts."""

from __future__ import annotations

from starlette.responses import Response

from boxwood.core.model import Page
from boxwood.core.mounts import Mount
from boxwood.server.exchange import Exchange, Operation
from boxwood.server.schema import filesystem as wire


async def list_filesystems(exchange: Exchange) -> Response:
    query = exchange.query(wire.ListFilesystemsQuery)
    page = await exchange.core.filesystems.list(exchange.caller, query.cursor, query.limit, query.name_prefix)
    shown = [wire.filesystem(one) for one in page.items]
    return exchange.answer(wire.FilesystemsAnswer(filesystems=shown, next_cursor=page.next_cursor))


async def create_filesystem(exchange: Exchange) -> Response:
    body = await exchange.body(wire.CreateFilesystemBody)
    made = await exchange.core.filesystems.create(exchange.caller, body.name, body.size_mib)
    return exchange.answer(wire.filesystem(made))


async def get_filesystem(exchange: Exchange) -> Response:
    found = await exchange.core.filesystems.get(exchange.caller, exchange.params["filesystem_id"])
    return exchange.answer(wire.filesystem(found))


async def delete_filesystem(exchange: Exchange) -> Response:
    await exchange.core.filesystems.delete(exchange.caller, exchange.params["filesystem_id"])
    return exchange.answer(wire.DeletedAnswer(deleted=True))


async def create_mount(exchange: Exchange) -> Response:
    return exchange.answer(wire.mount(await _create(exchange)))


async def list_mounts(exchange: Exchange) -> Response:
    page = await _list(exchange)
    return exchange.answer(
        wire.MountsAnswer(mounts=[wire.mount(one) for one in page.items], next_cursor=page.next_cursor)
    )


async def delete_mount(exchange: Exchange) -> Response:
    return await _delete(exchange, exchange.params["mount_id"])


async def create_sync(exchange: Exchange) -> Response:
    return exchange.answer(wire.sync(await _create(exchange)))


async def list_syncs(exchange: Exchange) -> Response:
    page = await _list(exchange)
    return exchange.answer(wire.SyncsAnswer(syncs=[wire.sync(one) for one in page.items], next_cursor=page.next_cursor))


async def delete_sync(exchange: Exchange) -> Response:
    return await _delete(exchange, exchange.params["sync_id"])


async def _create(exchange: Exchange) -> Mount:
    body = await exchange.body(wire.CreateMountBody)
    return await exchange.core.mounts.create(
        exchange.caller, exchange.params["id"], body.filesystem_id, body.path, bool(body.read_only)
    )


async def _list(exchange: Exchange) -> Page[Mount]:
    query = exchange.query(wire.ListMountsQuery)
    return await exchange.core.mounts.list(
        exchange.caller, exchange.params["id"], query.cursor, query.limit, query.filesystem_id
    )


async def _delete(exchange: Exchange, mount_id: str) -> Response:
    await exchange.core.mounts.delete(exchange.caller, exchange.params["id"], mount_id)
    return exchange.answer(wire.DeletedAnswer(deleted=True))


_FILESYSTEM = "/v1/filesystems/{filesystem_id}"
_VM = "/v1/vms/{id}"
_CREATING = ("bad_request", "not_found", "conflict", "invalid_state", "payload_too_large")

OPERATIONS = (
    Operation(
        "listFilesystems", "GET", "/v1/filesystems", list_filesystems, "Filesystems, by name.",
        answers={200: wire.FilesystemsAnswer}, query=wire.ListFilesystemsQuery, errors=("bad_request",),
    ),
    Operation(
        "createFilesystem", "POST", "/v1/filesystems", create_filesystem,
        "Make an empty volume that outlives VMs and can be mounted in several at once.",
        answers={200: wire.Filesystem}, body=wire.CreateFilesystemBody,
        errors=(
            "bad_request", "insufficient_resources", "already_exists", "conflict", "payload_too_large",
            "unsupported_operation", "capacity_unavailable",
        ),
    ),
    Operation(
        "getFilesystem", "GET", _FILESYSTEM, get_filesystem, "One filesystem, by id or name, with its size.",
        answers={200: wire.Filesystem}, errors=("bad_request", "not_found"),
    ),
    Operation(
        "deleteFilesystem", "DELETE", _FILESYSTEM, delete_filesystem, "Delete a filesystem that is mounted nowhere.",
        answers={200: wire.DeletedAnswer}, errors=("bad_request", "not_found", "conflict"),
    ),
    Operation(
        "createMount", "POST", f"{_VM}/mounts", create_mount, "Mount a filesystem in a VM, also while it runs.",
        answers={200: wire.Mount}, body=wire.CreateMountBody, errors=_CREATING,
    ),
    Operation(
        "listMounts", "GET", f"{_VM}/mounts", list_mounts, "What is mounted in a VM, the oldest first.",
        answers={200: wire.MountsAnswer}, query=wire.ListMountsQuery, errors=("bad_request", "not_found"),
    ),
    Operation(
        "deleteMount", "DELETE", f"{_VM}/mounts/{{mount_id}}", delete_mount,
        "Take a mount away, also while the VM runs. What is in the filesystem stays.",
        answers={200: wire.DeletedAnswer}, errors=("bad_request", "not_found", "invalid_state"),
    ),
    Operation(
        "createSync", "POST", f"{_VM}/syncs", create_sync, "As createMount, for clients before 1.2.8.",
        answers={200: wire.Sync}, body=wire.CreateMountBody, errors=_CREATING, ours=True, contract_name="createMount",
    ),
    Operation(
        "listSyncs", "GET", f"{_VM}/syncs", list_syncs, "As listMounts, for clients before 1.2.8.",
        answers={200: wire.SyncsAnswer}, query=wire.ListMountsQuery, errors=("bad_request", "not_found"),
        ours=True, contract_name="listMounts",
    ),
    Operation(
        "deleteSync", "DELETE", f"{_VM}/syncs/{{sync_id}}", delete_sync, "As deleteMount, for clients before 1.2.8.",
        answers={200: wire.DeletedAnswer}, errors=("bad_request", "not_found", "invalid_state"),
        ours=True, contract_name="deleteMount",
    ),
)  # fmt: skip
