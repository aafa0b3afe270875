"""What all objects have in common: kinds, names, metadata, and how they are read from a request's body."""

from __future__ import annotations

import re
import secrets
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from boxwood.core.ids import ALPHABET
from boxwood.core.model import Pool, Record
from boxwood.dialects.arl_kubernetes import schemas, validation
from boxwood.dialects.arl_kubernetes.schemas import Schema
from boxwood.dialects.arl_kubernetes.status import GROUP, Cause, bad_request, brief, invalid, unsupported_media
from boxwood.server import decode
from boxwood.server.exchange import Exchange

API_VERSION = f"{GROUP}/{schemas.VERSION}"
ANNOTATION_BYTES = 256 << 10
LABELS = 256  # of one object
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_KEY_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_OTHER_FORMATS = ("yaml", "protobuf", "cbor")
_RANDOM = "bcdfghjklmnpqrstvwxz2456789"  # what Kubernetes makes names of

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """Of a table. `value`: of an object; None shows nothing."""

    name: str
    type: str
    description: str
    path: str
    value: Callable[[Object], Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """`changes`: what the core calls changes of it."""

    name: str
    plural: str
    singular: str
    schema: Schema
    description: str
    changes: str
    is_name: Callable[[str], bool]
    columns: tuple[Column, ...] = ()


def is_label(text: str) -> bool:
    return _DNS_LABEL.fullmatch(text) is not None


def is_subdomain(text: str) -> bool:
    return len(text) <= 253 and _DNS_SUBDOMAIN.fullmatch(text) is not None


def suffix() -> str:
    """Five characters, as in the names of pods."""
    return "".join(secrets.choice(_RANDOM) for _ in range(5))


def uid(ident: str) -> str:
    """The same 128 bits as the core's id."""
    value = 0
    for character in ident:
        value = value << 5 | ALPHABET.index(character)
    return str(uuid.UUID(int=value))


def timestamp(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def now() -> str:
    return timestamp(datetime.now(UTC))


def condition(type_: str, status: str, reason: str, message: str, at: str | None = None) -> Object:
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message[:32768],
        "lastTransitionTime": at or now(),
    }


def shown(kind: Kind, item: Record | Pool, stored: Mapping[str, Any], spec: Object, status: Object) -> Object:
    """`stored`: the metadata that its maker gave it, and its generation."""
    ident = item.record_id if isinstance(item, Record) else item.pool_id
    metadata: Object = {
        "name": item.name,
        "namespace": item.namespace,
        "uid": uid(ident),
        "resourceVersion": str(item.revision),
        "generation": stored.get("generation", 1),
        "creationTimestamp": timestamp(item.created_at),
    }
    for name in ("labels", "annotations"):
        if stored.get(name):
            metadata[name] = stored[name]
    made: Object = {"apiVersion": API_VERSION, "kind": kind.name, "metadata": metadata, "spec": spec}
    return made | ({"status": status} if status else {})


# Reading


@dataclass(frozen=True, slots=True)
class Given:
    """An object as a caller wants it. `labels` and `annotations` are checked, `spec` fits the kind's schema.
    `revision`: the one that it was made from, None if that is not said."""

    name: str
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: Object
    revision: str | None
    uid: str | None

    @property
    def stored(self) -> Object:
        return {name: value for name in ("labels", "annotations") if (value := getattr(self, name))}


async def body(exchange: Exchange) -> bytes:
    """Of JSON, whatever its type is called: the Python client gives it none. Refused, PayloadTooLarge."""
    media = media_type(exchange)
    if any(other in media for other in _OTHER_FORMATS):
        raise unsupported_media(f"{brief(media)} is not supported: send application/json")
    return await exchange.raw_body()


def media_type(exchange: Exchange) -> str:
    header = next((value for name, value in exchange.scope["headers"] if name == b"content-type"), b"")
    return str(header.decode("latin-1").partition(";")[0].strip().lower())


def read(kind: Kind, value: Any, namespace: str, name: str | None, *, strict: bool) -> Given:
    """From what a body holds. `name`: of the path. Refused."""
    if not isinstance(value, dict):
        raise bad_request(f"the body must be an object, not {brief(value)}")
    _check_type(kind, value)
    if validation.is_vast(value):
        raise bad_request(f"the object has more than {validation.MOST_VALUES} members and items")
    try:
        value = validation.without_nulls(value)
    except ValueError as error:
        raise bad_request(f"the object is {error}") from None
    metadata = value.get("metadata", {})
    if not isinstance(metadata, dict):
        raise bad_request("metadata must be an object")
    if metadata.get("namespace", namespace) != namespace:
        raise bad_request("the namespace of the provided object does not match the namespace sent on the request")
    chosen = _name(kind, metadata, name)
    spec = value.get("spec")
    causes = list(_wrong_metadata(kind, metadata, chosen))
    if spec is None:
        causes.append(Cause.required("spec"))
    else:
        causes += validation.causes(spec, kind.schema["properties"]["spec"], "spec")
    if causes:
        raise invalid(kind.name, chosen, causes[:50])
    assert isinstance(spec, dict)
    if strict:
        _refuse_unknown(kind, value, spec)
    return Given(
        chosen, metadata.get("labels", {}), metadata.get("annotations", {}), spec, metadata.get("resourceVersion"),
        metadata.get("uid"),
    )  # fmt: skip


def decoded(raw: bytes) -> Any:
    """BadRequest."""
    return decode.json(raw, Any)


def _check_type(kind: Kind, value: Object) -> None:
    for member, wanted in (("apiVersion", API_VERSION), ("kind", kind.name)):
        if value.get(member, wanted) != wanted:
            raise bad_request(f"{member} in the data ({brief(value[member])}) does not match the expected {wanted}")


def _name(kind: Kind, metadata: Object, name: str | None) -> str:
    said = metadata.get("name")
    if said is None and name is None and isinstance(prefix := metadata.get("generateName"), str) and prefix:
        return prefix[:58] + suffix()
    if name is not None:
        if said is not None and said != name:
            raise bad_request(f"the name of the object ({brief(said)}) does not match the name on the URL ({name})")
        return name
    if not isinstance(said, str) or not said:
        raise invalid(kind.name, "", [Cause.required("metadata.name", "name or generateName is required")])
    return said


def _wrong_metadata(kind: Kind, metadata: Object, name: str) -> list[Cause]:
    causes: list[Cause] = []
    if not kind.is_name(name):
        what = "DNS-1123 label" if kind.is_name is is_label else "DNS-1123 subdomain"
        why = f"a lowercase {what} must consist of lower case alphanumeric characters and '-', and start and end with "
        causes.append(Cause.invalid("metadata.name", name, f"{why}an alphanumeric character"))
    unheard = [member for member in ("finalizers", "ownerReferences") if metadata.get(member)]
    causes += [Cause.forbidden(f"metadata.{member}", "not supported by this server") for member in unheard]
    no_text = [member for member in ("resourceVersion", "uid") if not isinstance(metadata.get(member, ""), str)]
    causes += [Cause.invalid(f"metadata.{member}", metadata[member], "must be a string") for member in no_text]
    return causes + _wrong_pairs(metadata, "labels") + _wrong_pairs(metadata, "annotations")


def _wrong_pairs(metadata: Object, member: str) -> list[Cause]:
    pairs = metadata.get(member, {})
    place = f"metadata.{member}"
    if found := list(validation.causes(pairs, schemas.TEXTS, place)):
        return found
    if member == "labels" and len(pairs) > LABELS:
        return [Cause.invalid(place, len(pairs), f"at most {LABELS}")]
    if sum(len(key.encode()) + len(text.encode(errors="replace")) for key, text in pairs.items()) > ANNOTATION_BYTES:
        return [Cause("FieldValueTooLong", place, f"Too long: must have at most {ANNOTATION_BYTES} bytes")]
    wrong = [key for key in pairs if not _is_key(key)]
    causes = [Cause.invalid(place, key, "a qualified name: an optional DNS prefix and '/', a name") for key in wrong]
    if member == "labels":
        said = (text for text in pairs.values() if text and not _KEY_NAME.fullmatch(text))
        causes += [Cause.invalid(place, text, "a label's value has at most 63 of A-Za-z0-9-_.") for text in said]
    return causes


def _is_key(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    return _KEY_NAME.fullmatch(name) is not None and (not slash or is_subdomain(prefix))


def _refuse_unknown(kind: Kind, value: Object, spec: Object) -> None:
    known = ("apiVersion", "kind", "metadata", "spec", "status")
    places = [name for name in value if name not in known]
    places += validation.unknown(spec, kind.schema["properties"]["spec"], "spec")
    if places:
        told = ", ".join(f'unknown field "{place[:200]}"' for place in places[:20])
        raise bad_request(
            f"{kind.name} in version {schemas.VERSION!r} cannot be handled: strict decoding error: {told}"
        )
