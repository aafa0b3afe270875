"""What both forms of the SDK's WebSockets share: options, errors, and how a terminal's closing is read; no I/O."""

from __future__ import annotations

import re
from typing import Any, Literal

from websockets.exceptions import ConnectionClosed, InvalidStatus

from boxwood.client.answers import LOST, NOT_CONNECTED, refusal
from boxwood.client.errors import BoxwoodError, ConnectionFailed, Unauthorized

OPEN_SECONDS = 60.0  # a VM's box may have to be made first
CLOSE_SECONDS = 5.0
OPTIONS: dict[str, Any] = {"compression": None, "max_size": 1 << 20, "user_agent_header": None}
ENDED = "terminal_lost"  # the code of a ConnectionFailed after which there is no such terminal any more
_NORMAL, _POLICY, _FAILED = 1000, 1008, 1011
_END = re.compile(r"(exit|killed|idle) ([0-9]{1,3})")


class Closed(Exception):
    """The other side has closed it, or it is broken (`code` None)."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason

    @property
    def end(self) -> tuple[str, int] | None:
        """How a terminal ended, if it did, and the exit code."""
        found = _END.fullmatch(self.reason) if self.code == _NORMAL else None
        return None if found is None else (found[1], int(found[2]))

    def error(self) -> BoxwoodError:
        """Of a terminal that may live on."""
        if self.code == _POLICY and "key" in self.reason:
            return Unauthorized("unauthorized", self.reason)
        why = self.reason or "the connection broke"
        return ConnectionFailed(ENDED if self.code == _FAILED else LOST, f"no longer at the terminal: {why}")


def closed(error: ConnectionClosed) -> Closed:
    return Closed(None, "") if error.rcvd is None else Closed(error.rcvd.code, error.rcvd.reason)


def refused(error: InvalidStatus) -> BoxwoodError:
    return refusal(error.response.status_code, bytes(error.response.body or b""))


def unreachable(url: str, error: Exception) -> BoxwoodError:
    why = str(error) or type(error).__name__
    shown = url.partition("?")[0]
    return ConnectionFailed(NOT_CONNECTED, f"cannot open a terminal at {shown}: {why}")


def proxy(url: str) -> Literal[True] | None:
    """Those of the environment for https alone: a local server's key stays on this machine."""
    return True if url.startswith("wss:") else None
