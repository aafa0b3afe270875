"""Sessions on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import Meta

from boxwood.core import model
from boxwood.server.schema.common import Answer, Page, Request

SessionState = Literal["idle", "pending", "running"]


class CreateSessionBody(Request, frozen=True, kw_only=True):
    env: dict[str, str] | None = None
    cwd: str | None = None
    pty: bool | None = None  # this and the rest are advisory by contract: there is no terminal yet
    cols: Annotated[int, Meta(ge=1, le=1000)] | None = None
    rows: Annotated[int, Meta(ge=1, le=1000)] | None = None
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


class ListSessionsAnswer(Answer, frozen=True, kw_only=True):
    sessions: list[Session]
    next_cursor: str | None


class DeleteSessionAnswer(Answer, frozen=True, kw_only=True):
    deleted: bool


def session(of: model.Session) -> Session:
    return Session(
        session_id=of.session_id,
        session_idx=of.index,
        state=of.state,  # type: ignore[arg-type]  # the core's states are the contract's
        cwd=of.cwd,
        env=dict(of.env) if of.env is not None else None,
        started_at=of.started_at,
        vm_id=of.vm_id,
    )
