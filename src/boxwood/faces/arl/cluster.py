"""Objects on a Kubernetes cluster, through the official client: `pip install 'boxwood[arl]'`."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from boxwood.faces.arl.errors import ApiException, ArlError, TaskTimeout, api_error, refusal
from boxwood.faces.arl.objects import PATIENCE
from boxwood.faces.arl.resources import GROUP, VERSION, Object, Plural

CONNECT_SECONDS = 10.0


class ClusterObjects:
    """See `Objects`.

    :param kubeconfig: a file; None: the pod's own service account, else KUBECONFIG, else ~/.kube/config.
    :param context: of the file; None: its current one.
    :raises ArlError: no `kubernetes` package, or no configuration.
    """

    def __init__(self, kubeconfig: str | None = None, context: str | None = None) -> None:
        try:
            self._package: Any = import_module("kubernetes")
            self._urllib3: Any = import_module("urllib3")
        except ImportError as error:
            raise ArlError(
                f"a Kubernetes cluster needs one package more: pip install 'boxwood[arl]' ({error})"
            ) from error
        self._client = self._package.client.ApiClient(self._configuration(kubeconfig, context))
        self.api = self._package.client.CustomObjectsApi(self._client)

    def _configuration(self, kubeconfig: str | None, context: str | None) -> Any:
        config = self._package.config
        found = self._package.client.Configuration()
        # An answer that does not come is the caller's matter, not to be asked for again.
        found.retries = self._urllib3.Retry(connect=2, read=False, redirect=0, status=0, other=0)
        if kubeconfig is None and context is None and _in_a_pod(config, found):
            return found
        try:
            # Said, because the package reads the variable once, when it is loaded.
            file = kubeconfig or os.environ.get("KUBECONFIG") or None
            config.load_kube_config(file, context, client_configuration=found)
        except (config.ConfigException, OSError) as error:
            raise ArlError(f"no usable kubeconfig: {error}") from error
        return found

    def create(self, plural: Plural, namespace: str, body: Object, *, ours: bool = False) -> Object:
        return self._ask("create", PATIENCE, namespace, plural, body)

    def get(
        self, plural: Plural, namespace: str, name: str, seconds: float = PATIENCE, *, news: bool = False
    ) -> Object:
        return self._ask("get", seconds, namespace, plural, name)

    def list(self, plural: Plural, namespace: str) -> list[Object]:
        found = self._ask("list", PATIENCE, namespace, plural).get("items")
        return list(found) if isinstance(found, list) else []

    def delete(self, plural: Plural, namespace: str, name: str) -> None:
        self._ask("delete", PATIENCE, namespace, plural, name)

    def close(self) -> None:
        self._client.rest_client.pool_manager.clear()

    def _ask(self, verb: str, seconds: float, *arguments: Any) -> Object:
        method = getattr(self.api, f"{verb}_namespaced_custom_object")
        try:
            found = method(GROUP, VERSION, *arguments, _request_timeout=(CONNECT_SECONDS, seconds))
        except self._package.client.ApiException as error:
            raise _refused(error) from error
        except self._urllib3.exceptions.ReadTimeoutError as error:
            raise TaskTimeout(f"no answer from the cluster within {seconds:g} s; outcome unknown") from error
        except self._urllib3.exceptions.HTTPError as error:
            raise api_error(0, f"no answer from the cluster: {error}") from error
        if not isinstance(found, dict):
            raise api_error(0, f"not an answer of a cluster: {str(found)[:300]!r}")
        return found


def _in_a_pod(config: Any, found: Any) -> bool:
    try:
        config.load_incluster_config(client_configuration=found)
    except config.ConfigException:
        return False
    return True


def _refused(error: Any) -> ApiException:
    """Theirs as ours: which it is too, and a RuntimeError besides."""
    body = error.body if isinstance(error.body, str | bytes) else ""
    found = refusal(error.status or 0, body) or api_error(error.status or 0, str(error.reason), str(body) or None)
    found.headers = dict(error.headers or {})
    return found
