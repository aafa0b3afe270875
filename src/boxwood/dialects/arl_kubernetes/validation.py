"""Objects held against their schemas; what is wrong is told in the words of a kube-apiserver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from boxwood.dialects.arl_kubernetes.schemas import Schema
from boxwood.dialects.arl_kubernetes.status import Cause, brief

INT32_MOST = (1 << 31) - 1
MOST_DEPTH = 100
MOST_VALUES = 50_000
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
}
_OPEN = "x-kubernetes-preserve-unknown-fields"


def causes(value: Any, schema: Schema, place: str) -> Iterator[Cause]:
    """Everything that is wrong with a value. `place`: its own, such as `spec`."""
    wanted = schema.get("type")
    if wanted is not None and not _is(value, wanted):
        why = f"{place} in body must be of type {wanted}: {brief(_type_of(value))}"
        yield Cause("FieldValueTypeInvalid", place, f"Invalid value: {brief(_type_of(value))}: {why}")
    elif wanted == "object":
        yield from _of_object(value, schema, place)
    elif wanted == "array":
        for at, item in enumerate(value):
            yield from causes(item, schema["items"], f"{place}[{at}]")
    elif wanted == "integer":
        yield from _of_integer(value, schema, place)
    elif "enum" in schema and value not in schema["enum"]:
        said = ", ".join(brief(one) for one in schema["enum"])
        yield Cause("FieldValueNotSupported", place, f"Unsupported value: {brief(value)}: supported values: {said}")


def _of_object(value: dict[str, Any], schema: Schema, place: str) -> Iterator[Cause]:
    for name in schema.get("required", ()):
        if name not in value:
            yield Cause.required(_below(place, name))
    properties: dict[str, Schema] = schema.get("properties", {})
    more: Schema | None = schema.get("additionalProperties")
    for name, member in value.items():
        if (known := properties.get(name, more)) is not None:
            yield from causes(member, known, _below(place, name))


def _of_integer(value: int, schema: Schema, place: str) -> Iterator[Cause]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and value < low:
        yield Cause.invalid(place, value, f"{place} in body should be greater than or equal to {low}")
    elif high is not None and value > high:
        yield Cause.invalid(place, value, f"{place} in body should be less than or equal to {high}")
    elif schema.get("format") == "int32" and not -INT32_MOST - 1 <= value <= INT32_MOST:
        yield Cause.invalid(place, value, f"{place} in body must be an int32")


def unknown(value: Any, schema: Schema, place: str) -> Iterator[str]:
    """The places of members that the schema does not have."""
    if isinstance(value, dict) and schema.get("type") == "object":
        properties: dict[str, Schema] = schema.get("properties", {})
        more: Schema | None = schema.get("additionalProperties")
        for name, member in value.items():
            if (known := properties.get(name, more)) is not None:
                yield from unknown(member, known, _below(place, name))
            elif not schema.get(_OPEN):
                yield _below(place, name)
    elif isinstance(value, list) and schema.get("type") == "array":
        for at, item in enumerate(value):
            yield from unknown(item, schema["items"], f"{place}[{at}]")


def is_vast(value: Any) -> bool:
    """Has it more than MOST_VALUES members and items, all in all? Nobody is to wait while such a one is looked at."""
    left, found = MOST_VALUES, [value]
    while found:
        one = found.pop()
        if isinstance(one, dict | list):
            left -= len(one)
            if left < 0:
                return True
            found.extend(one.values() if isinstance(one, dict) else one)
    return False


def without_nulls(value: Any, depth: int = 0) -> Any:
    """Members that are null count as not given. ValueError: it is nested too deeply."""
    if depth > MOST_DEPTH:
        raise ValueError(f"nested more than {MOST_DEPTH} deep")
    if isinstance(value, dict):
        return {name: without_nulls(member, depth + 1) for name, member in value.items() if member is not None}
    return [without_nulls(item, depth + 1) for item in value] if isinstance(value, list) else value


def _is(value: Any, wanted: str) -> bool:
    return isinstance(value, _TYPES[wanted]) and (wanted == "boolean" or not isinstance(value, bool))


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        return "number"
    return next((name for name in _TYPES if _is(value, name)), "unknown")


def _below(place: str, name: str) -> str:
    shown = name if len(name) <= 100 else name[:100] + "…"
    return f"{place}.{shown}" if place else shown
