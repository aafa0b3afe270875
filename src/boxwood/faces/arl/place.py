"""Which server, in this order:

1. the arguments: `kubeconfig` or `context`: that cluster; `url`, with or without `api_key`: that Boxwood server;
2. BOXWOOD_URL and BOXWOOD_API_KEY, else the Boxwood server that runs on this machine;
3. where there is none: the cluster whose pod this is, else that of KUBECONFIG, else that of ~/.kube/config.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from boxwood.client.discovery import find
from boxwood.client.errors import BoxwoodError, ConnectionFailed
from boxwood.faces.arl.cluster import ClusterObjects
from boxwood.faces.arl.errors import failure
from boxwood.faces.arl.objects import Objects
from boxwood.faces.arl.ours import BoxwoodObjects


def connect(
    url: str | None = None,
    api_key: str | None = None,
    kubeconfig: str | os.PathLike[str] | None = None,
    context: str | None = None,
    env: Mapping[str, str] = os.environ,
) -> Objects:
    """:raises ValueError: a cluster and a Boxwood server at once.
    :raises ApiException: no server is named and none runs here (status 0); no key belongs to it (401).
    :raises ArlError: a cluster, and no `kubernetes` package or no configuration for it.
    """
    if kubeconfig is not None or context is not None:
        check(url, api_key, kubeconfig, context)
        return ClusterObjects(None if kubeconfig is None else os.fspath(kubeconfig), context)
    try:
        return BoxwoodObjects(find(url, api_key, env))
    except ConnectionFailed as error:
        if api_key is None and _has_cluster(env):
            return ClusterObjects()
        raise failure(error) from error
    except BoxwoodError as error:
        raise failure(error) from error


def check(url: str | None, api_key: str | None, kubeconfig: object, context: str | None) -> None:
    """:raises ValueError: a cluster and a Boxwood server at once."""
    if (url is not None or api_key is not None) and (kubeconfig is not None or context is not None):
        raise ValueError("either url and api_key, of a Boxwood server, or kubeconfig and context, of a cluster")


def _has_cluster(env: Mapping[str, str]) -> bool:
    home = env.get("HOME")
    return bool(
        env.get("KUBERNETES_SERVICE_HOST")
        or env.get("KUBECONFIG")
        or (home and Path(home, ".kube/config").is_file())
    )  # fmt: skip
