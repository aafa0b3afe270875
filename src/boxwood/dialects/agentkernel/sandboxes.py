"""Sandboxes: the caller's own VMs that have a name of this protocol's, whoever made them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar
from urllib.parse import parse_qsl

from msgspec import Struct, field
from starlette.responses import Response

from boxwood.core.errors import AlreadyExists, BadRequest, CoreError, InvalidState, NotFound, Unsupported
from boxwood.core.model import VM, VMFilter
from boxwood.dialects.agentkernel import images, profiles, words
from boxwood.dialects.agentkernel.commands import shown
from boxwood.dialects.agentkernel.envelope import Lenient, NoSandbox, body, done
from boxwood.server.decode import QUERY_BYTES
from boxwood.server.exchange import Exchange

BACKEND = "boxwood"
IMAGE, PROFILE = "agentkernel/image", "agentkernel/profile"  # labels of ours: users' have no slash in their names
OTHER_BACKENDS = frozenset({"docker", "podman", "firecracker", "apple", "hyperlight", "kubernetes", "nomad"})
DEFAULT_TTL = "1h"
_PAGE = 1000


class CreateBody(Lenient, frozen=True, kw_only=True):
    name: str
    image: str | None = None
    vcpus: int | None = None
    memory_mb: int | None = None
    profile: str | None = None
    network: bool | str | None = None
    backend: str | None = None
    labels: dict[str, str] | None = None
    description: str | None = None
    source_url: Any = None
    source_ref: Any = None
    volumes: Any = None
    secrets: Any = None
    secret_files: Any = None
    placeholder_secrets: Any = None
    secret_mappings: Any = None
    ports: Any = None
    agent: Any = None
    init_script: Any = None
    lifecycle: Any = None

    later: ClassVar = dict.fromkeys(
        (
            "source_url", "source_ref", "volumes", "secrets", "secret_files", "placeholder_secrets", "secret_mappings",
            "ports", "agent", "init_script", "lifecycle",
        )
    )  # fmt: skip


class SandboxInfo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Its status is running unless it has been stopped: whether it has a box at the moment is nobody's concern."""

    name: str
    uuid: str
    status: str
    backend: str
    image: str | None = None
    vcpus: int | None = None
    memory_mb: int | None = None
    created_at: str | None = None
    expires_at: str | None = None
    ip: str | None = None
    profile: str | None = None
    description: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


class NotRunning(InvalidState):
    def __init__(self, name: str) -> None:
        super().__init__("vm", "running", f"Sandbox '{name}' is not running. Start it first")


def info(vm: VM) -> SandboxInfo:
    return SandboxInfo(
        name=vm.name or "",
        uuid=words.uuid_of(vm.vm_id),
        status="stopped" if vm.stopped else "running",
        backend=BACKEND,
        image=vm.labels.get(IMAGE) or vm.root_source_name,
        vcpus=None if vm.resources.vcpu is None else math.ceil(vm.resources.vcpu),  # clients read whole numbers
        memory_mb=vm.resources.memory_mib,
        created_at=shown(vm.created_at),
        expires_at=None if vm.expires_at is None else shown(vm.expires_at),
        ip=vm.address,
        profile=vm.labels.get(PROFILE),
        description=vm.description,
        labels={name: text for name, text in vm.labels.items() if "/" not in name},
    )


async def found(exchange: Exchange) -> VM:
    """The sandbox that the path names. BadRequest, NoSandbox."""
    name = words.name(exchange.params["name"])
    try:
        return await exchange.core.vms.named(exchange.caller, name)
    except NotFound:
        raise NoSandbox from None


async def running(exchange: Exchange) -> VM:
    """… which has not been stopped. BadRequest, NoSandbox, NotRunning."""
    vm = await found(exchange)
    if vm.stopped:
        raise NotRunning(vm.name or "")
    return vm


async def create(exchange: Exchange) -> Response:
    """Made and booted, or not there at all."""
    wanted = await body(exchange, CreateBody)
    words.name(wanted.name)
    image = wanted.image or images.DEFAULT
    request = images.source(exchange, image)
    profile = profiles.profile(wanted.profile)
    _check_backend(wanted.backend)
    labels = {**words.labels(wanted.labels), IMAGE: image}
    if wanted.profile:
        labels[PROFILE] = profile.name
    core, caller = exchange.core, exchange.caller
    try:
        vm = await core.vms.fork(
            caller,
            replace(
                profile.applied(request, wanted.vcpus, wanted.memory_mb, wanted.network),
                name=wanted.name,
                description=wanted.description,
                labels=labels,
            ),
        )
    except AlreadyExists:
        raise AlreadyExists("vm", f"Sandbox '{wanted.name}' already exists") from None
    try:
        await core.vms.start(caller, vm.vm_id)
    except CoreError:
        core.vms.discard(caller, vm.vm_id)
        raise
    return done(info(vm), 201)


def _check_backend(name: str | None) -> None:
    if not name or name.lower() in ("auto", "automatic", BACKEND):
        return
    if name.lower() in OTHER_BACKENDS:
        raise Unsupported(f"backend {name} is not ready on this server: its sandboxes are Boxwood's")
    raise BadRequest("Invalid backend: boxwood or automatic")


async def list_all(exchange: Exchange) -> Response:
    wanted = _labels_asked(exchange)
    sandboxes: list[SandboxInfo] = []
    cursor: str | None = None
    while True:
        page = await exchange.core.vms.list(exchange.caller, VMFilter(), cursor, _PAGE)
        sandboxes += [
            info(vm)
            for vm in page.items
            if vm.name is not None and words.is_name(vm.name) and wanted.items() <= vm.labels.items()
        ]
        cursor = page.next_cursor
        if cursor is None:
            return done(sandboxes)


def _labels_asked(exchange: Exchange) -> dict[str, str]:
    """Of `?label=KEY:VALUE`, which may be there several times."""
    text: bytes = exchange.scope["query_string"]
    if len(text) > QUERY_BYTES:
        raise BadRequest(f"the query has more than {QUERY_BYTES} bytes")
    try:
        pairs = parse_qsl(text.decode("ascii"), errors="strict", max_num_fields=64)
    except ValueError:
        raise BadRequest("the query cannot be read") from None
    wanted = {}
    for label in (value for name, value in pairs if name == "label"):
        key, sign, value = label.partition(":")
        if not sign:
            raise BadRequest("Invalid label: key:value")
        wanted[key] = value
    return words.labels(wanted)


async def get(exchange: Exchange) -> Response:
    return done(info(await found(exchange)))


async def get_by_uuid(exchange: Exchange) -> Response:
    vm_id = words.vm_id_of(exchange.params["uuid"])
    try:
        vm = await exchange.core.vms.get(exchange.caller, vm_id)
    except NotFound:
        raise NoSandbox from None
    if vm.org_id != exchange.caller.org_id or vm.name is None or not words.is_name(vm.name):
        raise NoSandbox
    return done(info(vm))


async def delete(exchange: Exchange) -> Response:
    vm = await found(exchange)
    await exchange.core.vms.delete(exchange.caller, vm.vm_id)
    return done("Sandbox removed")


async def start(exchange: Exchange) -> Response:
    vm = await found(exchange)
    await exchange.core.vms.start(exchange.caller, vm.vm_id)
    return done("Sandbox started")


async def stop(exchange: Exchange) -> Response:
    """Of one that is stopped already too."""
    vm = await found(exchange)
    await exchange.core.vms.stop(exchange.caller, vm.vm_id)
    return done("Sandbox stopped")


class ExtendBody(Lenient, frozen=True, kw_only=True):
    by: str | None = None


async def extend(exchange: Exchange) -> Response:
    """Without a body, or with one that cannot be read, by an hour."""
    try:
        by = (await body(exchange, ExtendBody)).by
    except BadRequest:
        by = None
    seconds = words.seconds(DEFAULT_TTL if by is None else by)
    vm = await found(exchange)
    extended = await exchange.core.vms.extend(exchange.caller, vm.vm_id, seconds)
    return done({"expires_at": None if extended.expires_at is None else shown(extended.expires_at)})
