"""Requests about warm pools; no I/O."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from boxwood.client.calls import Call, delete, get, given, number, own_key, segment, source_member


def create_pool(
    name: str,
    source: str,
    *,
    namespace: str,
    replicas: int,
    vcpu: int | None,
    memory_mib: int | None,
    disk_mib: int | None,
    network: str | None,
) -> Call:
    sizes = given(vcpu=vcpu, memory_mib=memory_mib, disk_mib=disk_mib)
    body: dict[str, Any] = {"name": name, "namespace": namespace, "replicas": replicas, **source_member(source)}
    return Call("POST", "/v1/warm-pools", body | given(resources=sizes or None, network=network))


def get_pool(name: str, namespace: str) -> Call:
    return get(_pool_path(name), namespace=namespace)


def change_pool(name: str, namespace: str, replicas: int) -> Call:
    return Call("PATCH", _in_namespace(_pool_path(name), namespace), {"replicas": replicas}, replay_safe=True)


def delete_pool(name: str, namespace: str, vms: bool) -> Call:
    return delete(_in_namespace(_pool_path(name), namespace) + ("&vms=true" if vms else ""))


def claim(
    pool: str,
    namespace: str,
    *,
    name: str | None,
    description: str | None,
    ttl: float | None,
    idempotency_key: str | None,
) -> Call:
    """Without a key the call gets one of its own."""
    body = given(name=name, description=description, ttl=number(ttl))
    path = _in_namespace(_pool_path(pool, "claim"), namespace)
    return Call("POST", path, body, own_key(idempotency_key), replay_safe=True, patience=60)


def _pool_path(name: str, *rest: str) -> str:
    return "/".join(["/v1/warm-pools", *(segment(part) for part in (name, *rest))])


def _in_namespace(path: str, namespace: str) -> str:
    return f"{path}?{urlencode({'namespace': namespace})}"
