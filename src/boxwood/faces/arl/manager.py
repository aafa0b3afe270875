"""WarmPoolManager: pools of sandboxes that wait to be taken."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from boxwood.faces.arl import resources
from boxwood.faces.arl.connected import Connected
from boxwood.faces.arl.durations import seconds
from boxwood.faces.arl.errors import TaskTimeout
from boxwood.faces.arl.objects import wait_for
from boxwood.faces.arl.resources import Object, count, reason, status_of


class WarmPoolManager(Connected):
    """The pools of a namespace. As a context manager its connections are closed at the end; the pools stay.

    :param namespace: a-z, 0-9 and `-`; pools and sandboxes of different namespaces know nothing of each other.
    :param timeout: how long `wait_for_warmpool_ready` waits: seconds, or text like "5m".
    :param url, api_key: a Boxwood server; `kubeconfig`, `context`: a cluster; for the order see `place`.
    :raises ValueError: not a duration, or two servers at once.
    """

    def __init__(
        self,
        namespace: str = "default",
        timeout: float | str = 300,
        *,
        url: str | None = None,
        api_key: str | None = None,
        kubeconfig: str | os.PathLike[str] | None = None,
        context: str | None = None,
    ) -> None:
        super().__init__(url, api_key, kubeconfig, context)
        seconds(timeout)
        self.namespace = namespace
        self.timeout = timeout

    def create_warmpool(
        self,
        name: str,
        image: str,
        sidecar_image: str,
        replicas: int = 2,
        command: Sequence[str] | None = None,
        workspace_path: str = "/workspace",
        testbed_path: str | None = None,
    ) -> dict[str, Any]:
        """A new pool; returns at once, before it is filled.

        :param image: of the sandboxes; a Boxwood server knows goldens and what its `image_names` say.
        :param sidecar_image: ARL's helper container; a Boxwood server needs none.
        :param replicas: how many sandboxes wait.
        :param command: what keeps the container alive; None: `sleep infinity`.
        :param workspace_path: where commands run; `testbed_path`: one more shared directory.
        :raises ApiException: 409: there is one of that name; 422: a bad name; what the image is refused with.
        """
        body = resources.warm_pool(
            name, self.namespace, image, sidecar_image, replicas, command, workspace_path, testbed_path
        )
        return self._objects.create("warmpools", self.namespace, body)

    def get_warmpool(self, name: str) -> dict[str, Any]:
        """:raises ApiException: 404: there is none."""
        return self._objects.get("warmpools", self.namespace, name)

    def delete_warmpool(self, name: str) -> None:
        """Sandboxes that were taken from it live on.

        :raises ApiException: 404: there is none.
        """
        self._objects.delete("warmpools", self.namespace, name)

    def wait_for_warmpool_ready(
        self, name: str, poll_interval: float = 2.0, timeout: float | str | None = None
    ) -> None:
        """Returns when as many sandboxes wait as the pool is to hold, and it is to hold any.

        :param poll_interval: the longest pause between two questions, in seconds; a Boxwood server tells when it is so.
        :param timeout: else the manager's.
        :raises ApiException: 404: there is none.
        :raises TaskTimeout: not in time.
        """
        patience = seconds(self.timeout if timeout is None else timeout)
        found = wait_for(self._objects, "warmpools", self.namespace, name, _is_ready, patience, seconds(poll_interval))
        if not _is_ready(found):
            why = reason(found)
            raise TaskTimeout(f"WarmPool {name!r} is not ready after {patience:g} s" + (f": {why}" if why else ""))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<WarmPoolManager {self.namespace}>"


def _is_ready(pool: Object) -> bool:
    wanted = count(pool.get("spec") or {}, "replicas")
    return 0 < wanted <= count(status_of(pool), "readyReplicas")
