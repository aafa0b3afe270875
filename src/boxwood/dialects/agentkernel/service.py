"""The server as this protocol sees it: is it there, and what are sandboxes made with."""

from __future__ import annotations

from starlette.responses import Response

from boxwood.core.errors import Unavailable, Unsupported
from boxwood.dialects.agentkernel.envelope import done
from boxwood.dialects.agentkernel.sandboxes import BACKEND
from boxwood.server.exchange import Exchange

CAPABILITIES = (
    "mount_cwd", "mount_home", "attach", "host_volumes", "ssh", "proxy_secret_bindings", "secret_files", "snapshots",
    "resume", "full_state_pause_resume", "full_state_fork", "endpoints",
)  # fmt: skip


async def health(exchange: Exchange) -> Response:
    """Unavailable as long as nothing can be run."""
    if not exchange.core.goldens.ready or exchange.app.stopping.is_set():
        raise Unavailable(exchange.app.problem or "the image of this host is still being made")
    return done("ok")


async def backends(exchange: Exchange) -> Response:
    ready = exchange.core.goldens.ready
    reason = "ready" if ready else exchange.app.problem or "the image of this host is still being made"
    ours = {
        "backend": BACKEND,
        "configured": True,
        "usable": ready,
        "readiness_reason": reason,
        "capabilities": dict.fromkeys(CAPABILITIES, False),
    }
    return done({"default_backend": BACKEND, "backends": [ours]})


async def not_supported(exchange: Exchange) -> Response:
    what = exchange.operation.summary
    raise Unsupported(f"{what} are not supported by this server; docs/compatibility.md says what is")
