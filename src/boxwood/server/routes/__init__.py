"""Every operation that is served, one module for each resource."""

from __future__ import annotations

from boxwood.dialects import agentkernel, arker_legacy, arl_gateway, arl_kubernetes
from boxwood.server.dialect import Dialect
from boxwood.server.exchange import Operation
from boxwood.server.routes import (
    activity,
    files,
    following,
    keys,
    network,
    operator,
    pools,
    ptys,
    refused,
    runs,
    service,
    sessions,
    vms,
)

OPERATIONS: tuple[Operation, ...] = (
    *service.OPERATIONS,
    *vms.OPERATIONS,
    *runs.OPERATIONS,
    *following.OPERATIONS,
    *activity.OPERATIONS,
    *sessions.OPERATIONS,
    *ptys.OPERATIONS,
    *files.OPERATIONS,
    *network.OPERATIONS,
    *pools.OPERATIONS,
    *keys.OPERATIONS,
    *refused.OPERATIONS,
    *operator.OPERATIONS,
    *arker_legacy.OPERATIONS,
)

DIALECTS: tuple[Dialect, ...] = (agentkernel.DIALECT, arl_gateway.DIALECT, arl_kubernetes.DIALECT)
