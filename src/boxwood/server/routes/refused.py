"""What the contract has and this server has not, yet: each refused with the name of the feature.

Pools are refused the way an organisation sees them that has none: 404, resource pool.
"""

from __future__ import annotations

from starlette.responses import Response

from boxwood.core.errors import NotFound, Unsupported
from boxwood.server.exchange import Exchange, Handler, Operation


def unsupported(what: str, feature: str | None) -> Handler:
    async def refuse(_: Exchange) -> Response:
        raise Unsupported(f"{what}: not available on this server", feature)

    return refuse


async def no_pool(_: Exchange) -> Response:
    raise NotFound("pool", "there is no such pool: this server has none")


def _feature(what: str, feature: str | None, routes: str, ours: bool = False) -> tuple[Operation, ...]:
    """`routes`: operationId, method and path of each."""
    lines = [line.split() for line in routes.strip().splitlines()]
    return tuple(
        Operation(
            name, method, path, unsupported(what, feature), f"Not available: {what}.",
            errors=("unsupported_operation",), refused=True, ours=ours,
        )
        for name, method, path in lines
    )  # fmt: skip


_VM = "/v1/vms/{id}"
_WORKER = "/v1/pools/{pool_id}/workers/{worker_id}"
_POOLS = f"""
listPools GET /v1/pools
createPool POST /v1/pools
getPool GET /v1/pools/{{pool_id}}
updatePool PATCH /v1/pools/{{pool_id}}
deletePool DELETE /v1/pools/{{pool_id}}
listPoolWorkers GET /v1/pools/{{pool_id}}/workers
heartbeatWorker PUT {_WORKER}
openWorkerTunnel GET {_WORKER}/tunnel
putWorkerVm PUT {_WORKER}/vms/{{vm_id}}
deleteWorkerVm DELETE {_WORKER}/vms/{{vm_id}}
putWorkerRun PUT {_WORKER}/vms/{{vm_id}}/runs/{{run_id}}
"""

OPERATIONS = (
    *_feature("resizing by this route (PATCH the VM)", None, f"resize POST {_VM}/resize", ours=True),
    *_feature(
        "tunnels", "public_ingress",
        f"listTunnels GET {_VM}/tunnels\ncreateTunnel POST {_VM}/tunnels\n"
        f"getTunnel GET {_VM}/tunnels/{{tunnel}}\ndeleteTunnel DELETE {_VM}/tunnels/{{tunnel}}",
        ours=True,
    ),
    *(
        Operation(
            name, method, path, no_pool, "Not available: pools.", errors=("not_found",), refused=True
        )
        for name, method, path in (line.split() for line in _POOLS.strip().splitlines())
    ),
)  # fmt: skip
