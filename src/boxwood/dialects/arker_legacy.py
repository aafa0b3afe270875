"""The first generation, releases 0.1 and 0.2: six routes below /api/v1/vms (wire 1.9).

Four routes are its own. DELETE and sync it shares with later generations; there a caller is of the first generation
if it says `Python-urllib/` and comes under /api (`Exchange.first_generation`). What is promised to it and to nobody
else: paths below /home/user alone, files of up to 100 MB, a run's answer within 120 seconds or an error that its
client does not answer by starting the command again.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, ClassVar

from msgspec import Meta
from starlette.responses import Response

from boxwood.core.errors import BadRequest, CoreError, NotFound, PayloadTooLarge
from boxwood.core.model import PUBLIC_ORG, VM, Caller, ForkRequest, Run, RunRequest, VMFilter
from boxwood.server.agent import SHORT_WINDOW
from boxwood.server.errors import OperationFailed
from boxwood.server.exchange import Exchange, Operation
from boxwood.server.schema.common import UNSET, Answer, Query, Request, Seconds, UnsetType
from boxwood.server.schema.network import of_booleans
from boxwood.server.schema.run import completed
from boxwood.server.schema.vm import REGION

BASE_IMAGE = "arkuntu"
HOME = "/home/user"
FILE_BYTES = 100 * 1024 * 1024

# Clients decide by themselves that "arkuntu" is one of these ids; 0.1.3 and 0.2.1 pick one of a thousand.
_ALIAS = re.compile(r"01KQBYKEV5WJ7YB010603T1DCT_D8C0|01KQH(2A|54)[0-9A-HJKMNP-TV-Z]{19}_USWE")
_INDEX = re.compile(r"[0-9]{1,9}")
_PAGE = 1000


class LegacyForkBody(Request, frozen=True, kw_only=True):
    """`network`: true is internet, false is none; anything else is ignored."""

    is_public: bool | None = None
    name: str | None = None
    network: Any = None
    region: Any = None

    retired: ClassVar = frozenset({"region"})


class LegacyForkByNameBody(Request, frozen=True, kw_only=True, rename={"from_": "from"}):
    from_: str
    is_public: bool | None = None
    name: str | None = None
    network: Any = None
    region: Any = None

    retired: ClassVar = frozenset({"region"})


class LegacyRunBody(Request, frozen=True, kw_only=True):
    """`session_id`: a number is the session's index, anything else its id."""

    command: str
    session_id: int | str | None = None
    timeout: Seconds | None = None


class LegacyListQuery(Query, frozen=True, kw_only=True):
    limit: Annotated[int, Meta(ge=1, le=100)] = 25
    offset: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    q: str | None = None
    sort: Annotated[str, Meta(pattern="^-?(created_at|region)$")] = "-created_at"


class LegacyVM(Answer, frozen=True, kw_only=True):
    vm_id: str
    name: str | None
    base_image: str
    region: str
    created_at: datetime


class LegacyListAnswer(Answer, frozen=True, kw_only=True):
    items: list[LegacyVM]
    total: int


class LegacyRunAnswer(Answer, frozen=True, kw_only=True):
    stdout: str
    stdout_encoding: str
    stderr: str
    stderr_encoding: str
    exit_code: int
    duration_ms: float
    session_id: int | str
    cwd: str
    run_id: str | UnsetType = UNSET


class OutsideHome(BadRequest):
    """A path that the first generation may not name."""


def check_path(path: str) -> None:
    """OutsideHome, unless the path lies below /home/user."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not path.startswith("/") or ".." in parts or parts[:2] != ["home", "user"] or len(parts) < 3:
        said = f"only paths below {HOME}/, without .."
        raise OutsideHome(f"path: {said}", [("path", said)])


def check_size(size: int) -> None:
    if size > FILE_BYTES:
        raise PayloadTooLarge(f"the file has {size} bytes, at most {FILE_BYTES} are taken", FILE_BYTES, size)


def source(vm: str) -> ForkRequest:
    """What to fork when a client names this id: one of the aliases of the base image, or the id of a VM."""
    if _ALIAS.fullmatch(vm.upper()):
        return ForkRequest(source_name=BASE_IMAGE, name_org=PUBLIC_ORG)
    return ForkRequest(source_id=vm)


async def fork(exchange: Exchange) -> Response:
    body = await exchange.body(LegacyForkBody)
    return await _fork(exchange, source(exchange.params["id"]), body)


async def fork_by_name(exchange: Exchange) -> Response:
    body = await exchange.body(LegacyForkByNameBody)
    return await _fork(exchange, ForkRequest(source_name=body.from_), body)


async def _fork(exchange: Exchange, of: ForkRequest, body: LegacyForkBody | LegacyForkByNameBody) -> Response:
    request = replace(of, name=body.name, public=bool(body.is_public), network=of_booleans(body.network))
    exchange.facts.vm, exchange.facts.source = "", request.source_id or ""
    made = await exchange.core.vms.fork(exchange.caller, request)
    exchange.facts.vm = made.vm_id
    return exchange.answer(_vm(made))


async def run(exchange: Exchange) -> Response:
    body = await exchange.body(LegacyRunBody)
    session_id, index = _session(body.session_id)
    request = RunRequest(
        command=body.command, session_id=session_id, session_index=index, timeout=body.timeout, wait=SHORT_WINDOW
    )
    core, caller, vm = exchange.core, exchange.caller, exchange.params["id"]
    exchange.facts.kind, exchange.facts.command = "shell", body.command
    exchange.facts.run = ended = await core.runs.start(caller, vm, request)
    if not ended.ended:
        raise await _too_long(exchange, ended)
    shown = completed(ended, integer_exit=True)
    if ended.fail_reason is not None and ended.exit_code is None:
        context = {"vm_id": ended.vm_id, "run_id": ended.run_id}
        recovery = {"work": "stopped", "context": context}
        raise OperationFailed(f"the run failed: {ended.fail_reason}", "command_failed", recovery)
    assert shown.exit_code is not None
    answer = LegacyRunAnswer(
        stdout=shown.stdout,
        stdout_encoding=shown.stdout_encoding,
        stderr=shown.stderr,
        stderr_encoding=shown.stderr_encoding,
        exit_code=shown.exit_code,
        duration_ms=ended.duration_ms or 0.0,
        session_id=body.session_id if body.session_id is not None else 0,
        cwd=await _cwd(exchange, ended),
        run_id=ended.run_id,
    )
    return exchange.answer(answer)


async def _too_long(exchange: Exchange, begun: Run) -> CoreError:
    """The client has no way to ask for the run later, and takes 429, 502, 503 and 504 as a request to start it again:
    the run is ended, so that its session can be used, and the answer is none of these."""
    await exchange.core.runs.cancel(exchange.caller, begun.vm_id, begun.run_id)
    return OperationFailed(
        f"the command did not end within {SHORT_WINDOW:g} seconds and was stopped; "
        "give it a timeout, start it with nohup and &, or use a later release of the client",
        "deadline_exceeded",
        {"work": "stopped", "context": {"vm_id": begun.vm_id, "run_id": begun.run_id}},
    )


async def _cwd(exchange: Exchange, ended: Run) -> str:
    """Where the session is now; nowhere if it has been deleted, with its VM perhaps, since the run ended."""
    try:
        return await exchange.core.sessions.directory(exchange.caller, ended.vm_id, ended.session_id)
    except NotFound:
        return ""


async def list_vms(exchange: Exchange) -> Response:
    query = exchange.query(LegacyListQuery)
    where = VMFilter(name_contains=query.q)
    total = await exchange.core.vms.count(exchange.caller, where)
    first, last = query.offset, min(query.offset + query.limit, total)
    if query.sort == "created_at":  # the core lists the newest first
        found = await _slice(exchange, where, max(0, total - last), max(0, total - first))
        found.reverse()
    else:
        found = await _slice(exchange, where, first, last)
    return exchange.answer(LegacyListAnswer(items=[_vm(one) for one in found], total=total))


async def _slice(exchange: Exchange, where: VMFilter, first: int, last: int) -> list[VM]:
    caller: Caller = exchange.caller
    found: list[VM] = []
    cursor, at = None, 0
    while at < last:
        page = await exchange.core.vms.list(caller, where, cursor, min(_PAGE, last - at))
        found += page.items[max(0, first - at) :]
        at, cursor = at + len(page.items), page.next_cursor
        if cursor is None:
            break
    return found


def _session(given: int | str | None) -> tuple[str | None, int | None]:
    if given is None or given == "":
        return None, 0
    if isinstance(given, int) or _INDEX.fullmatch(given):
        return None, int(given)
    return given, None


def _vm(of: VM) -> LegacyVM:
    return LegacyVM(
        vm_id=of.vm_id, name=of.name, base_image=of.root_source_name or "", region=REGION, created_at=of.created_at
    )


OPERATIONS = (
    Operation(
        "legacyFork", "POST", "/v1/vms/{id}/fork", fork, "First generation: fork by id.",
        answers={200: LegacyVM}, body=LegacyForkBody, logged="fork", contract_name="fork",
        prefixes=("/api",), ours=True,
        errors=("bad_request", "not_found", "already_exists", "payload_too_large", "capacity_unavailable"),
    ),
    Operation(
        "legacyForkByName", "POST", "/v1/vms/fork", fork_by_name, "First generation: fork by name.",
        answers={200: LegacyVM}, body=LegacyForkByNameBody, logged="fork", contract_name="fork",
        prefixes=("/api",), ours=True,
        errors=("bad_request", "not_found", "already_exists", "payload_too_large", "capacity_unavailable"),
    ),
    Operation(
        "legacyRun", "POST", "/v1/vms/{id}/run", run, "First generation: run a command to its end, within 100 seconds.",
        answers={200: LegacyRunAnswer}, body=LegacyRunBody, body_limit=4 * 1024 * 1024, logged="run",
        contract_name="createRun", prefixes=("/api",), ours=True,
        errors=("bad_request", "not_found", "invalid_state", "payload_too_large", "operation_failed"),
    ),
    Operation(
        "legacyListVms", "GET", "/v1/vms/list", list_vms, "First generation: list VMs.",
        answers={200: LegacyListAnswer}, query=LegacyListQuery, contract_name="listVms", prefixes=("/api",), ours=True,
        errors=("bad_request",),
    ),
)  # fmt: skip
