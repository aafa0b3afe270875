"""Every operation that is served, one module for each resource."""

from __future__ import annotations

from boxwood.dialects import agentkernel, arker_legacy, arl_gateway, arl_kubernetes
from boxwood.server.dialect import Dialect
from boxwood.server.exchange import Operation
from boxwood.server.routes import (
    activity,
    content,
    exports,
    files,
    filesystems,
    filework,
    following,
    keys,
    network,
    operator,
    policies,
    pools,
    ports,
    ptys,
    refused,
    runs,
    service,
    sessions,
    snapshots,
    storage,
    vms,
)

OPERATIONS: tuple[Operation, ...] = (
    *service.OPERATIONS,
    *vms.OPERATIONS,
    *runs.OPERATIONS,
    *following.OPERATIONS,
    *activity.OPERATIONS,
    *sessions.OPERATIONS,
    *snapshots.OPERATIONS,
    *exports.OPERATIONS,
    *ptys.OPERATIONS,
    *files.OPERATIONS,
    *filework.OPERATIONS,
    *filesystems.OPERATIONS,
    *content.OPERATIONS,
    *network.OPERATIONS,
    *ports.OPERATIONS,
    *policies.OPERATIONS,
    *pools.OPERATIONS,
    *keys.OPERATIONS,
    *refused.OPERATIONS,
    *operator.OPERATIONS,
    *storage.OPERATIONS,
    *arker_legacy.OPERATIONS,
)

DIALECTS: tuple[Dialect, ...] = (agentkernel.DIALECT, arl_gateway.DIALECT, arl_kubernetes.DIALECT)
