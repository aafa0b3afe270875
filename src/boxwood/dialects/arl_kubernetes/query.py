"""What Kubernetes' clients say beside the path: parameters, of which most may be ignored, and selectors."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from boxwood.dialects.arl_kubernetes.status import bad_request, brief
from boxwood.server.decode import QUERY_BYTES
from boxwood.server.exchange import Exchange

MOST_WATCH_SECONDS = 3600
_MOST_REVISION = (1 << 63) - 1
_TERM = re.compile(
    r"\s*(?:(?P<not>!)\s*(?P<missing>[^\s!=,()]+)"
    r"|(?P<key>[^\s!=,()]+)\s*(?:(?P<sign>==|=|!=)\s*(?P<value>[^\s!=,()]*)"
    r"|\s(?P<word>in|notin)\s*\((?P<values>[^()]*)\))?)\s*(?:,|$)"
)

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Query:
    """`revision` None: not given, or 0, which asks for no particular one."""

    watch: bool
    revision: int | None
    seconds: float
    bookmarks: bool
    chosen: Callable[[Mapping[str, Any]], bool]  # of an object, by its labels and name
    dry: bool
    strict: bool
    initial_events: bool
    included: str  # of an object in a row of a Table
    limit: int | None
    after: tuple[str, str] | None  # the place from which a list is to be continued
    name: str | None  # of the one object that can be chosen


def read(exchange: Exchange) -> Query:
    """Refused."""
    given = parameters(exchange)
    validation = given.get("fieldValidation", "")
    if validation not in ("", "Ignore", "Warn", "Strict"):
        raise bad_request(f"fieldValidation: unsupported value {brief(validation)}")
    if given.get("dryRun", "") not in ("", "All"):
        raise bad_request(f"dryRun: unsupported value {brief(given['dryRun'])}")
    labels = _label_selector(given.get("labelSelector", ""))
    fields = _field_selector(given.get("fieldSelector", ""))

    def chosen(shown: Mapping[str, Any]) -> bool:
        return fields(shown["metadata"]) and labels(shown["metadata"].get("labels", {}))

    return Query(
        watch=_truth(given.get("watch")),
        revision=_revision(given.get("resourceVersion", "")),
        seconds=_seconds(given.get("timeoutSeconds", "")),
        bookmarks=_truth(given.get("allowWatchBookmarks")),
        chosen=chosen,
        dry="dryRun" in given and given["dryRun"] != "",
        strict=validation == "Strict",
        initial_events=_truth(given.get("sendInitialEvents")),
        included=given.get("includeObject", "Metadata"),
        limit=_limit(given.get("limit", "")),
        after=_place(given.get("continue", "")),
        name=_name(given.get("fieldSelector", "")),
    )


def parameters(exchange: Exchange) -> dict[str, str]:
    """Of what is given twice the last counts. Refused."""
    text: bytes = exchange.scope["query_string"]
    if len(text) > QUERY_BYTES:
        raise bad_request(f"the query has more than {QUERY_BYTES} bytes")
    try:
        return dict(parse_qsl(text.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=64))
    except ValueError:
        raise bad_request("the query cannot be read") from None


def _truth(text: str | None) -> bool:
    return text is not None and text.lower() in ("1", "true", "t")


def _revision(text: str) -> int | None:
    if text in ("", "0"):
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 19 or int(text) > _MOST_REVISION:
        raise bad_request(f"resourceVersion: invalid value {brief(text)}")
    return int(text)


def _seconds(text: str) -> float:
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        return MOST_WATCH_SECONDS
    return min(int(text), MOST_WATCH_SECONDS) or MOST_WATCH_SECONDS


def _limit(text: str) -> int | None:
    return int(text) or None if text.isascii() and text.isdecimal() and len(text) <= 9 else None


def continued(place: tuple[str, str]) -> str:
    """What a client says to go on behind this place."""
    return base64.urlsafe_b64encode("/".join(place).encode()).decode()


def _place(text: str) -> tuple[str, str] | None:
    if not text:
        return None
    try:
        namespace, slash, name = base64.urlsafe_b64decode(text.encode("ascii")).decode().partition("/")
    except ValueError:
        slash = ""
    if not slash:
        raise bad_request("continue key is not valid")
    return namespace, name


# Selectors


def _name(text: str) -> str | None:
    """Of a field selector that asks for a name and nothing else."""
    found = re.fullmatch(r"metadata\.name==?([^\s!=,()]+)", text)
    return None if found is None else found[1]


def _label_selector(text: str) -> Callable[[Labels], bool]:
    terms = [_term(found) for found in _terms(text, "labelSelector")]
    return lambda labels: all(term(labels) for term in terms)


def _terms(text: str, what: str) -> list[re.Match[str]]:
    found: list[re.Match[str]] = []
    at = 0
    while at < len(text):
        match = _TERM.match(text, at)
        if match is None:
            raise bad_request(f"{what}: cannot read {brief(text)}")
        found.append(match)
        at = match.end()
    return found


def _term(found: re.Match[str]) -> Callable[[Labels], bool]:
    if found["not"]:
        missing = found["missing"]
        return lambda labels: missing not in labels
    key, sign, value = found["key"], found["sign"], found["value"]
    if found["word"]:
        values = {one.strip() for one in found["values"].split(",")}
        wanted = found["word"] == "in"
        return lambda labels: (labels.get(key) in values) is wanted
    if sign is None:
        return lambda labels: key in labels
    if sign == "!=":
        return lambda labels: labels.get(key) != value
    return lambda labels: labels.get(key) == value


def _field_selector(text: str) -> Callable[[Mapping[str, Any]], bool]:
    """Of names and namespaces: no other field can be asked for."""
    terms: list[tuple[str, bool, str]] = []
    for found in _terms(text, "fieldSelector"):
        if found["key"] not in ("metadata.name", "metadata.namespace") or found["sign"] is None:
            raise bad_request(f'field label not supported: "{found["key"] or found["missing"]}"')
        terms.append((found["key"].removeprefix("metadata."), found["sign"] != "!=", found["value"]))
    return lambda metadata: all((metadata.get(name) == value) is wanted for name, wanted, value in terms)
