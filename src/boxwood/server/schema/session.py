"""Sessions on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from boxwood.core import model
from boxwood.core.errors import BadRequest
from boxwood.server.schema.common import UNSET, Answer, Page, Query, Request, UnsetType

SessionState = Literal["idle", "pending", "running"]
SessionKind = Literal["shell", "python"]
Cells = Annotated[int, Meta(ge=1, le=1000)]
Idle = Annotated[float, Meta(ge=0, le=1e8, description="Seconds without input and output, and it is killed; 0: never.")]


class CreateSessionBody(Request, frozen=True, kw_only=True):
    env: dict[str, str] | None = None
    cwd: str | None = None
    kind: (
        Annotated[SessionKind, Meta(description="python: an interpreter; runs are its source, and variables live on.")]
        | None
    ) = None
    pty: bool | None = None  # this and the rest are advisory by contract: a terminal is made when it is looked at
    cols: Cells | None = None
    rows: Cells | None = None
    command: Any = None


class ListSessionsQuery(Page, frozen=True, kw_only=True):
    state: SessionState | None = None


class Session(Answer, frozen=True, kw_only=True):
    session_id: str
    session_idx: Annotated[int, Meta(ge=0, description="0 is the default shell.")]
    state: SessionState
    cwd: str
    env: dict[str, str] | None
    started_at: datetime | None
    vm_id: str | None
    kind: Annotated[SessionKind, Meta(description="Told of Python contexts alone.")] | UnsetType = UNSET


class ListSessionsAnswer(Answer, frozen=True, kw_only=True):
    sessions: list[Session]
    next_cursor: str | None


class DeleteSessionAnswer(Answer, frozen=True, kw_only=True):
    deleted: bool


class PatchSessionBody(Request, frozen=True, kw_only=True):
    cols: Cells | None = None
    rows: Cells | None = None
    timeout_secs: Idle | None = None

    def shape(self) -> tuple[int, int] | None:
        """BadRequest: one of the two alone."""
        if (self.cols is None) != (self.rows is None):
            raise BadRequest("cols and rows: give both or neither", [("cols", "only together with rows")])
        return (self.cols, self.rows) if self.cols is not None and self.rows is not None else None


class PatchSessionAnswer(Answer, frozen=True, kw_only=True):
    ok: bool
    session_id: str


class PtyTicketBody(Request, frozen=True, kw_only=True):
    pass


class PtyTicketAnswer(Answer, frozen=True, kw_only=True):
    ticket: str
    expires_in: int


class AttachPtyQuery(Query, frozen=True, kw_only=True):
    """`argv` and `term` are ours: a JSON list, and what kind of terminal looks."""

    cols: Cells | None = None
    rows: Cells | None = None
    command: Annotated[str, Meta(max_length=4096, description="One program, looked for along PATH.")] | None = None
    argv: Annotated[str, Meta(description="A program and its arguments, a JSON list of texts.")] | None = None
    persist: Annotated[str, Meta(description="true (the default), or false: it ends when nobody looks.")] | None = None
    cancel_ttl_secs: Idle | None = None
    ticket: Annotated[str, Meta(max_length=256)] | None = None
    term: Annotated[str, Meta(max_length=64)] | None = None

    def program(self) -> list[str] | None:
        """BadRequest."""
        if self.argv is None:
            return None if self.command is None else [self.command]
        if self.command is not None:
            raise BadRequest("command and argv: give one of them", [("argv", "not beside command")])
        try:
            return msgspec.json.decode(self.argv, type=list[str])
        except (msgspec.DecodeError, RecursionError):
            raise BadRequest("argv: a JSON list of texts", [("argv", "a JSON list of texts")]) from None

    def persists(self) -> bool:
        """BadRequest."""
        said = (self.persist or "true").lower()
        if said not in ("true", "false", "1", "0"):
            raise BadRequest("persist: true or false", [("persist", "true or false")])
        return said in ("true", "1")


def session(of: model.Session) -> Session:
    return Session(
        session_id=of.session_id,
        session_idx=of.index,
        state=of.state,  # type: ignore[arg-type]  # the core's states are the contract's
        cwd=of.cwd,
        env=dict(of.env) if of.env is not None else None,
        started_at=of.started_at,
        vm_id=of.vm_id,
        kind="python" if of.kind == "python" else UNSET,
    )
