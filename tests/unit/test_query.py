"""Parameters of a request: read as the standard library reads them."""

from __future__ import annotations

from urllib.parse import parse_qsl, quote_plus, urlencode

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from boxwood.core.errors import BadRequest
from boxwood.server import decode
from boxwood.server.schema.common import Query
from boxwood.server.schema.filesystem import CreateMountBody


class Anything(Query):
    a: str = ""
    b: str = ""


def read(text: bytes) -> dict[str, str] | None:
    """None: refused."""
    try:
        found = decode.query(text, Anything)
    except BadRequest:
        return None
    return {name: value for name, value in (("a", found.a), ("b", found.b)) if value}


def expected(text: bytes) -> dict[str, str] | None:
    try:
        pairs = parse_qsl(text.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=64)
    except ValueError:
        return None
    named = {name: value for name, value in pairs if value}
    if len({name for name, _ in pairs}) != len(pairs) or not set(named) <= {"a", "b"}:
        return None
    return named


@given(st.text("ab=&%+; 12fF\xe9\0").map(str.encode) | st.binary(max_size=12).map(lambda raw: b"a=" + raw))
@example(b"a=%2Froot%2Fsmall&b=x+y")
@example(b"a=%ff")
@example(b"a=%zz")
@example(b"a=%")
@example(b"%61=1&a=2")
@example(b"a")
@example(b"&&a=1&")
@example(b"a=1=2;b=3")
@example(b"a=1" + b"&" * 63)
@example(b"a=1" + b"&" * 64)
def test_as_the_standard_library(text: bytes) -> None:
    assert read(text) == expected(text)


@given(st.text(), st.text(min_size=1))
def test_what_is_quoted_comes_back(a: str, b: str) -> None:
    try:
        query = urlencode({"a": a, "b": b}, quote_via=quote_plus)
    except UnicodeEncodeError:  # half a character
        return
    assert read(query.encode()) == {name: value for name, value in (("a", a), ("b", b)) if value}


def test_too_many() -> None:
    with pytest.raises(BadRequest, match="cannot be read"):
        decode.query(b"&".join(b"a=" for _ in range(65)), Anything)
    with pytest.raises(BadRequest, match="given twice"):
        decode.query(b"a=1&a=1", Anything)


@pytest.mark.parametrize(
    ("path", "said"), [("", "path: must not be empty"), ("/" * 4097, "path: at most 4096 characters")]
)
def test_a_text_that_is_too_short_or_too_long(path: str, said: str) -> None:
    with pytest.raises(BadRequest) as refused:
        decode.json(msgspec.json.encode({"filesystem_id": "x", "path": path}), CreateMountBody)
    assert str(refused.value) == said
