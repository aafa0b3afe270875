"""Changes as documents: JSON merge patches (RFC 7396) and JSON patches (RFC 6902)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from boxwood.dialects.arl_kubernetes.status import bad_request, brief, unsupported_media
from boxwood.server import decode
from boxwood.server.exchange import encode

MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
MOST_OPERATIONS = 1000
MOST_DEPTH = 100
COPIED_BYTES = 3 << 20  # by all operations of a patch: each could double what is there

_ACCEPTED = f"accepted media types include: {JSON_PATCH}, {MERGE}"
_REFUSED = {
    "application/apply-patch+yaml": "server-side apply is not supported by this server: leave out --server-side",
    "application/apply-patch+cbor": "server-side apply is not supported by this server: leave out --server-side",
    "application/strategic-merge-patch+json": "strategic merge patches are not for custom resources",
}


def check(media: str) -> None:
    """Is this the type of a patch that can be applied here? Refused."""
    if media not in (MERGE, JSON_PATCH):
        why = _REFUSED.get(media, "the body of the request was in an unknown format")
        raise unsupported_media(f"{why} - {_ACCEPTED}")


def patched(value: dict[str, Any], media: str, body: bytes) -> dict[str, Any]:
    """The value after the patch; it stays as it is itself. Refused."""
    check(media)
    if media == MERGE:
        wanted = decode.json(body, Any)
        if not isinstance(wanted, dict):
            raise bad_request("a merge patch must be an object")
        made = _merged(value, wanted, 0)
        assert isinstance(made, dict)
        return made
    try:
        return _json_patched(value, decode.json(body or b"[]", Any))
    except RecursionError:
        raise bad_request("the patch makes an object that is nested too deeply") from None


def _merged(value: Any, patch: Any, depth: int) -> Any:
    if depth > MOST_DEPTH:
        raise bad_request("the patch is nested too deeply")
    if not isinstance(patch, dict):
        return patch
    made = dict(value) if isinstance(value, dict) else {}
    for name, member in patch.items():
        if member is None:
            made.pop(name, None)
        else:
            made[name] = _merged(made.get(name), member, depth + 1)
    return made


# JSON patches


def _json_patched(value: dict[str, Any], operations: Any) -> dict[str, Any]:
    if not isinstance(operations, list) or len(operations) > MOST_OPERATIONS:
        raise bad_request(f"a JSON patch is a list of at most {MOST_OPERATIONS} operations")
    made: Any = copy.deepcopy(value)
    room = COPIED_BYTES
    for operation in operations:
        if not isinstance(operation, dict) or not isinstance(operation.get("path"), str):
            raise bad_request(f"this is no operation of a JSON patch: {brief(operation)}")
        known = _OPERATIONS.get(str(operation.get("op")))
        if known is None:
            raise bad_request(f"unknown operation of a JSON patch: {brief(operation.get('op'))}")
        if known is _copied and (room := room - len(encode(_found(made, _from(operation))))) < 0:
            raise bad_request(f"the patch copies more than {COPIED_BYTES} bytes")
        made = known(made, operation)
    if not isinstance(made, dict):
        raise bad_request("the patch leaves no object")
    return made


def _add(value: Any, operation: dict[str, Any]) -> Any:
    return _put(value, operation["path"], _value(operation))


def _remove(value: Any, operation: dict[str, Any]) -> Any:
    return _taken(value, operation["path"])


def _replace(value: Any, operation: dict[str, Any]) -> Any:
    path = operation["path"]
    return _put(_taken(value, path), path, _value(operation)) if path else _value(operation)


def _move(value: Any, operation: dict[str, Any]) -> Any:
    source, path = _from(operation), operation["path"]
    if path.startswith(source + "/"):
        raise _wrong(path, "a value cannot be moved into itself")
    moved = _found(value, source)
    return _put(_taken(value, source), path, moved)


def _copied(value: Any, operation: dict[str, Any]) -> Any:
    return _put(value, operation["path"], copy.deepcopy(_found(value, _from(operation))))


def _test(value: Any, operation: dict[str, Any]) -> Any:
    if _found(value, operation["path"]) != _value(operation):
        raise _wrong(operation["path"], "the test failed")
    return value


_OPERATIONS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "add": _add,
    "remove": _remove,
    "replace": _replace,
    "move": _move,
    "copy": _copied,
    "test": _test,
}


def _value(operation: dict[str, Any]) -> Any:
    if "value" not in operation:
        raise _wrong(operation["path"], "the operation needs a value")
    return operation["value"]


def _from(operation: dict[str, Any]) -> str:
    if not isinstance(operation.get("from"), str):
        raise _wrong(operation["path"], "the operation needs a `from`")
    return str(operation["from"])


def _parts(path: str) -> list[str]:
    if path and not path.startswith("/"):
        raise _wrong(path, "a path begins with /")
    return [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]


def _found(value: Any, path: str) -> Any:
    for part in _parts(path):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list):
            value = value[_index(value, part, path)]
        else:
            raise _wrong(path, "there is no such member")
    return value


def _put(value: Any, path: str, new: Any) -> Any:
    if not path:
        return new
    *before, last = _parts(path)
    parent = _found(value, path.rpartition("/")[0]) if before else value
    if isinstance(parent, dict):
        parent[last] = new
    elif isinstance(parent, list):
        parent.insert(len(parent) if last == "-" else _index(parent, last, path, end=True), new)
    else:
        raise _wrong(path, "it has no members")
    return value


def _taken(value: Any, path: str) -> Any:
    *before, last = _parts(path) or [""]
    parent = _found(value, path.rpartition("/")[0]) if before else value
    if isinstance(parent, dict) and last in parent:
        del parent[last]
    elif isinstance(parent, list):
        del parent[_index(parent, last, path)]
    else:
        raise _wrong(path, "there is no such member")
    return value


def _index(items: list[Any], part: str, path: str, *, end: bool = False) -> int:
    most = len(items) if end else len(items) - 1
    if not part.isdecimal() or not part.isascii() or len(part) > 9 or not int(part) <= most:
        raise _wrong(path, "there is no such item")
    return int(part)


def _wrong(path: str, why: str) -> Exception:
    return bad_request(f"the patch cannot be applied at {brief(path)}: {why}")
