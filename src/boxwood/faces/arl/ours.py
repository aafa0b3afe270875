"""Objects on a Boxwood server, under /k8s on its ordinary port."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from boxwood.client._sync.carrier import Carrier, carrier_for
from boxwood.client._sync.pause import sleep
from boxwood.client._sync.transport import AGENT
from boxwood.client.answers import RETRYABLE_STATUS, Retry, decode
from boxwood.client.calls import Call, segment
from boxwood.client.discovery import Target
from boxwood.client.errors import BadRequest, BoxwoodError
from boxwood.client.http1 import Asked
from boxwood.faces.arl.errors import ApiException, failure, refusal
from boxwood.faces.arl.objects import PATIENCE
from boxwood.faces.arl.resources import GROUP, VERSION, Object, Plural


class BoxwoodObjects:
    """See `Objects`. Requests that may be repeated are, after a lost connection or where the server asks for it."""

    def __init__(self, target: Target, retry: Retry = Retry()) -> None:  # noqa: B008 (frozen)
        self._url = target.url
        self._headers = {**AGENT, "accept": "application/json", "authorization": f"Bearer {target.api_key}"}
        self._carrier: Carrier | None = None
        self._retry = retry

    def create(self, plural: Plural, namespace: str, body: Object, *, ours: bool = False) -> Object:
        try:
            return self._ask("POST", plural, namespace, body=body, again=ours)
        except ApiException as error:
            if not ours or error.status != 409:
                raise
        return self.get(plural, namespace, body["metadata"]["name"])

    def get(
        self, plural: Plural, namespace: str, name: str, seconds: float = PATIENCE, *, news: bool = False
    ) -> Object:
        headers = {"prefer": f"wait={math.ceil(seconds)}"} if news else {}  # RFC 7240
        return self._ask("GET", plural, namespace, name, headers=headers, seconds=seconds, again=True)

    def list(self, plural: Plural, namespace: str) -> list[Object]:
        found = self._ask("GET", plural, namespace, again=True).get("items")
        return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []

    def delete(self, plural: Plural, namespace: str, name: str) -> None:
        self._ask("DELETE", plural, namespace, name)

    def close(self) -> None:
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.close()

    def _ask(
        self,
        method: str,
        plural: Plural,
        namespace: str,
        *name: str,
        body: Object | None = None,
        headers: Mapping[str, str] = {},
        seconds: float = PATIENCE,
        again: bool = False,
    ) -> Object:
        try:
            parts = "/".join(segment(part) for part in (namespace, plural, *name))
            call = Call(method, f"/k8s/apis/{GROUP}/{VERSION}/namespaces/{parts}", body, headers, replay_safe=again)
            return self._repeated(call, None if body is None else _encoded(body), seconds)
        except BoxwoodError as error:
            raise failure(error) from error

    def _repeated(self, call: Call, data: bytes | None, seconds: float) -> Object:
        headers = {**self._headers, **call.headers}
        if data is not None:
            headers["content-type"] = "application/json"
        carrier = self._carrier = self._carrier or carrier_for(self._url)
        tried = 0
        while True:
            try:
                status, said = carrier.send(Asked(call.method, self._url + call.path, headers, seconds, data))
                return _judged(call, status, said)
            except BoxwoodError as error:
                delay = self._retry.delay(call, error, tried)
                if delay is None:
                    raise
            sleep(delay)
            tried += 1


def _judged(call: Call, status: int, said: bytes) -> Object:
    """:raises ApiException: the server's last word.
    :raises BoxwoodError: what may be worth another attempt, and what is no answer of this protocol.
    """
    if status >= 400 and (refused := refusal(status, said)) is not None:
        if status in RETRYABLE_STATUS:
            raise BoxwoodError(f"http_{status}", refused.message, status)
        raise refused
    found: dict[str, Any] = decode(call, status, said, dict)
    return found


def _encoded(body: Object) -> bytes:
    try:
        return msgspec.json.encode(body)
    except (TypeError, ValueError) as error:
        raise BadRequest("bad_request", f"cannot be sent as JSON: {error}") from None
