"""Operations: what a client has asked for under an id of its own, so that it may lose the connection and ask again.

The same id with the same request attaches to the operation, whether it runs or has ended; it goes on whoever waits. A
request is held for `arl_hold_seconds`, then answered with 202, which clients from 0.20 on understand (0.15.6 to 0.19.8
send ids and do not, so it is held long); never one that has been sent before, which must be answered with the result.
Operations are on record from their beginning: one that the server did not survive is an error, and is not done twice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct, field
from starlette.responses import Response

from boxwood.core.errors import AlreadyExists, CoreError, IdempotencyConflict, NotFound, Unavailable
from boxwood.core.model import Caller
from boxwood.dialects.arl_gateway import words
from boxwood.dialects.arl_gateway.envelope import NoOperation, OperationError, Told, now, told
from boxwood.dialects.arl_gateway.session import Session
from boxwood.server.errors import Disconnected
from boxwood.server.exchange import JSON, Exchange, encode

if TYPE_CHECKING:
    from boxwood.dialects.arl_gateway.gateway import Gateway

KIND = "arl.operation"
KEPT_SECONDS = 600.0  # after its end
MOST_KNOWN = 10_000  # in memory
KEPT_BYTES = 64 << 20  # of results in memory; those before are read from their records
RECORD_BYTES = 1 << 20  # of a result that is kept longer than it is in memory
ASK_SECONDS = 10.0  # a question for one that runs is held so long
MOST_ASKED = 10_000
RESTARTED = "the server was restarted while this operation ran; what it did until then was done"

Work = Callable[[], Coroutine[Any, Any, Any]]
Key = tuple[str, str, str]


class OperationInfo(Told, frozen=True, kw_only=True, omit_defaults=True):
    operation_id: str = field(name="operationID")
    session_id: str = field(name="sessionID")
    status: str
    created_at: str = field(name="createdAt")
    started_at: str = field(name="startedAt")
    finished_at: str = field(name="finishedAt", default="")
    result: msgspec.Raw | None = None
    error: str = ""


class _Kept(Struct, omit_defaults=True):
    """What is on record of one."""

    mark: str
    created_at: str
    status: str = "running"
    finished_at: str = ""
    result: str | None = None
    error: str = ""


class Operation:
    """`done` is set at its end; then there is a `result`, encoded, or a `failure`."""

    def __init__(self, session: Session, operation_id: str, mark: str) -> None:
        self.session = session
        self.id = operation_id
        self.mark = mark
        self.created_at = now()
        self.finished_at = ""
        self.ended = 0.0  # loop time
        self.result: bytes | None = None
        self.failure: Exception | None = None
        self.done = asyncio.Event()

    @property
    def key(self) -> Key:
        return (*self.session.key, self.id)

    def info(self) -> OperationInfo:
        status = "running"
        if self.done.is_set():
            status = "done" if self.failure is None else "error"
        return OperationInfo(
            operation_id=self.id,
            session_id=self.session.id,
            status=status,
            created_at=self.created_at,
            started_at=self.created_at,
            finished_at=self.finished_at,
            result=None if self.result is None else msgspec.Raw(self.result),
            error=_said(self.failure),
        )


class Operations:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._known: OrderedDict[Key, Operation] = OrderedDict()
        self._asked: OrderedDict[Key, None] = OrderedDict()  # ids that nobody knew when somebody asked for them
        self._bytes = 0

    async def start(self) -> None:
        """Those that the last server did not finish."""
        records = self._gateway.core.records
        for record in await records.of_kind(KIND):
            if record.body.get("status", "running") == "running":
                with suppress(NotFound):
                    await records.update(
                        records.caller_of(record), KIND, record.namespace, record.name, _restarted, ttl=KEPT_SECONDS
                    )

    # Asked for

    async def answer(self, exchange: Exchange, session: Session, operation_id: str | None, wanted: Any, work: Work
                     ) -> Response:  # fmt: skip
        """Do it, or wait for what is being done already; its result, or 202. `wanted`: the request, told apart by it.
        Refused as the work is."""
        if not operation_id:
            task = self._gateway.spawn(work())
            await self._attend(exchange, task, None)
            return told(task.result())
        key = (*session.key, words.operation_id(operation_id))
        mark = _mark(exchange.operation.name, wanted)
        operation = self._known.get(key)
        again = operation is not None or self._asked.pop(key, _NEVER) is None
        if operation is None:
            if (kept := self._kept(session.caller, key)) is not None:
                _check_mark(kept.mark, mark, key[2])
                return _kept_answer(kept)
            operation = self._begin(session, key, mark, work)
        _check_mark(operation.mark, mark, key[2])
        waiting = asyncio.ensure_future(operation.done.wait())
        try:
            hold = None if again else self._gateway.core.config.arl_hold_seconds
            await self._attend(exchange, waiting, hold)
        finally:
            waiting.cancel()
        if not operation.done.is_set():
            return told({"operationID": key[2], "status": "running"}, 202)
        if operation.failure is not None:
            raise operation.failure
        return Response(await self._result(operation), media_type=JSON)

    async def _attend(self, exchange: Exchange, task: asyncio.Future[Any], seconds: float | None) -> None:
        """Wait for it as long as somebody waits for the answer. Disconnected, Unavailable (the server is stopping)."""
        gone = asyncio.ensure_future(exchange.disconnected())
        stopping = asyncio.ensure_future(self._gateway.stopping.wait())
        try:
            await asyncio.wait((task, gone, stopping), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return
            if gone.done():
                raise Disconnected
            if stopping.done() and seconds is None:
                raise Unavailable("the server is stopping; what runs goes on", not_started=False)
        finally:
            for one in (gone, stopping):
                one.cancel()
            await asyncio.gather(gone, stopping, return_exceptions=True)

    def _begin(self, session: Session, key: Key, mark: str, work: Work) -> Operation:
        operation = self._known[key] = Operation(session, key[2], mark)
        self._gateway.spawn(self._do(operation, work))
        return operation

    async def _do(self, operation: Operation, work: Work) -> None:
        try:
            await self._record(operation)
            operation.result = encode(await work())
        except Exception as error:
            operation.failure = error
            if not isinstance(error, CoreError):
                raise
        except BaseException:
            operation.failure = Unavailable("the server is stopping; what runs goes on", not_started=False)
            raise
        finally:
            if operation.result is not None or not self._gateway.stopping.is_set():
                self._gateway.spawn(self._record_end(operation))
            operation.finished_at = now()
            operation.ended = asyncio.get_running_loop().time()
            operation.done.set()
            self._keep(operation)

    def _keep(self, operation: Operation) -> None:
        """Of the oldest results only the records are left."""
        self._bytes += len(operation.result or b"")
        while len(self._known) > MOST_KNOWN:
            oldest = next((key for key, one in self._known.items() if one.ended and one is not operation), None)
            if oldest is None:
                break
            self._bytes -= len(self._known.pop(oldest).result or b"")
        for one in self._known.values():
            if self._bytes <= KEPT_BYTES:
                return
            if one.result is not None and one is not operation:
                self._bytes -= len(one.result)
                one.result = None

    async def _result(self, operation: Operation) -> bytes:
        if operation.result is not None:
            return operation.result
        kept = self._kept(operation.session.caller, operation.key)
        if kept is None or kept.result is None:
            raise OperationError(f"the result of operation {operation.id} was too big to be kept: see the history")
        return kept.result.encode()

    # Asked about

    async def look(self, exchange: Exchange, session: Session, operation_id: str) -> OperationInfo:
        """One that runs is waited for, for a while. NoOperation."""
        key = (*session.key, operation_id)
        operation = self._known.get(key)
        if operation is None:
            kept = self._kept(session.caller, key)
            if kept is None:
                self._asked[key] = None
                while len(self._asked) > MOST_ASKED:
                    self._asked.popitem(last=False)
                raise NoOperation(operation_id[:128])
            return _kept_info(kept, session, operation_id)
        if not operation.done.is_set():
            waiting = asyncio.ensure_future(operation.done.wait())
            try:
                await self._attend(exchange, waiting, min(ASK_SECONDS, self._gateway.core.config.arl_hold_seconds))
            finally:
                waiting.cancel()
        if operation.done.is_set() and operation.failure is None:
            result = msgspec.Raw(await self._result(operation))
            return msgspec.structs.replace(operation.info(), result=result)
        return operation.info()

    # On record

    def _kept(self, caller: Caller, key: Key) -> _Kept | None:
        try:
            return msgspec.convert(self._gateway.core.records.get(caller, KIND, key[1], key[2]).body, _Kept)
        except NotFound:
            return None

    async def _record(self, operation: Operation) -> None:
        body = msgspec.to_builtins(_Kept(operation.mark, operation.created_at))
        with suppress(AlreadyExists):
            await self._gateway.core.records.create(
                operation.session.caller, KIND, operation.session.id, operation.id, body
            )

    async def _record_end(self, operation: Operation) -> None:
        result = None
        if operation.result is not None and len(operation.result) <= RECORD_BYTES:
            result = operation.result.decode()
        kept = _Kept(
            operation.mark, operation.created_at, operation.info().status, operation.finished_at, result,
            _said(operation.failure),
        )  # fmt: skip
        with suppress(NotFound):
            await self._gateway.core.records.update(
                operation.session.caller, KIND, operation.session.id, operation.id,
                lambda _: msgspec.to_builtins(kept), ttl=KEPT_SECONDS,
            )  # fmt: skip

    def sweep(self) -> None:
        """Forget those that ended long ago."""
        before = asyncio.get_running_loop().time() - KEPT_SECONDS
        for key, operation in list(self._known.items()):
            if operation.done.is_set() and operation.ended < before:
                del self._known[key]
                self._bytes -= len(operation.result or b"")


_NEVER = object()


def _mark(name: str, wanted: Any) -> str:
    text = json.dumps([name, wanted], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _check_mark(known: str, mark: str, operation_id: str) -> None:
    if known != mark:
        raise IdempotencyConflict(f"operation {operation_id} already exists with different request")


def _said(failure: Exception | None) -> str:
    if failure is None:
        return ""
    if isinstance(failure, CoreError):
        return failure.message or failure.code
    return "something went wrong in the server; its log says what"


def _restarted(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "status": "error", "error": RESTARTED, "finished_at": now()}


def _kept_answer(kept: _Kept) -> Response:
    if kept.status == "done" and kept.result is not None:
        return Response(kept.result, media_type=JSON)
    raise OperationError(kept.error or "the result of this operation was too big to be kept: see the history")


def _kept_info(kept: _Kept, session: Session, operation_id: str) -> OperationInfo:
    lost = kept.status == "done" and kept.result is None
    return OperationInfo(
        operation_id=operation_id,
        session_id=session.id,
        status="error" if lost else kept.status,
        created_at=kept.created_at,
        started_at=kept.created_at,
        finished_at=kept.finished_at,
        result=None if kept.result is None else msgspec.Raw(kept.result.encode()),
        error="the result was too big to be kept: see the history" if lost else kept.error,
    )
