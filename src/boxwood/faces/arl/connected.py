"""What talks to a server: it connects when it is first used, and its connections end with it."""

from __future__ import annotations

import os
import weakref
from typing import Any

from boxwood.faces.arl.errors import ArlError
from boxwood.faces.arl.objects import Objects
from boxwood.faces.arl.place import check, connect


class Connected:
    """The part that sessions and managers share."""

    def __init__(
        self,
        url: str | None,
        api_key: str | None,
        kubeconfig: str | os.PathLike[str] | None,
        context: str | None,
    ) -> None:
        check(url, api_key, kubeconfig, context)
        self._place = (url, api_key, kubeconfig, context)
        self._made: Objects | None = None

    @property
    def _objects(self) -> Objects:
        if self._made is None:
            self._made = connect(*self._place)
            weakref.finalize(self, self._made.close)
        return self._made

    @property
    def custom_api(self) -> Any:
        """The `kubernetes.client.CustomObjectsApi` that is used.

        :raises ArlError: there is none, because the server is Boxwood's.
        """
        api = getattr(self._objects, "api", None)
        if api is None:
            raise ArlError("there is no CustomObjectsApi where the server is Boxwood's; pass a kubeconfig for one")
        return api

    def close(self) -> None:
        """Closes the connections; what is on the server stays. The next call opens others."""
        if self._made is not None:
            self._made.close()
