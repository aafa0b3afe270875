"""What a Python context reports, as the server reads it: whatever comes, it has a shape that can be told again."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwood.server.schema.python import (
    MOST_PARTS,
    MOST_RESULTS,
    PythonContext,
    PythonException,
    PythonResult,
    report,
    reports,
)

VALUE = b'{"result": {"kind": "value", "data": {"text/plain": "1"}}}'
ERROR = b'{"error": {"name": "E", "value": "v", "traceback": "t", "frames": [{"file": "f", "line": 1, "name": "n"}]}}'
CONTEXT = b'{"context": {"new": true, "number": 1, "lost": null}}'


def test_each_kind() -> None:
    found = reports(b"\n".join([CONTEXT, VALUE, ERROR, b'{"dropped": 3}', b""]))
    assert found.context == PythonContext(new=True, number=1)
    assert isinstance(found.exception, PythonException) and found.exception.frames[0].line == 1
    assert [bytes(result.data["text/plain"]) for result in found.results] == [b'"1"'] and found.lost == 3


def test_what_is_not_whole_yet_waits() -> None:
    assert reports(VALUE).results == [] and reports(VALUE).lost == 0
    assert len(reports(VALUE + b"\n" + VALUE[:20]).results) == 1


def test_the_first_context_stays_and_results_are_bounded() -> None:
    other = CONTEXT.replace(b"1", b"2")
    assert reports(CONTEXT + b"\n" + other + b"\n").context == PythonContext(new=True, number=1)
    many = reports((VALUE + b"\n") * (MOST_RESULTS + 5))
    assert (len(many.results), many.lost) == (MOST_RESULTS, 5)


@pytest.mark.parametrize(
    "line",
    [
        b"", b"null", b"5", b"{}", b'{"result": null}', b'{"result": {"kind": "x", "data": {}}}', b'{"dropped": "1"}',
        b'{"result": {"kind": "value", "data": {"a": ' + b"[" * 101 + b"]" * 101 + b"}}}",
        b'{"result": {"kind": "value", "data": {"a": ' + b'{"b":' * 5000 + b"1" + b"}" * 5000 + b"}}}",
        b'{"result": {"kind": "value", "data": []}}', b"\xff", b'{"error": {"name": 5}}',
        b'{"result": {"kind": "value", "data": {"a": "\xff"}}}', b'{"result": {"kind": "value", "data": {"a": [1,\r2]}}}',
        b'{"result": {"kind": "value", "data": {"a": [' + b"9" * 5000 + b"]}}}", b'{"dropped": ' + b"9" * 5000 + b"}",
        b'{"result": {"kind": "value", "data": {"a": -' + b"9" * 5000 + b"}}}",
    ],
)  # fmt: skip
def test_no_sense(line: bytes) -> None:
    assert report(line) is None


def test_brackets_within_texts_are_no_depth() -> None:
    told = json.dumps({"result": {"kind": "value", "data": {"application/json": ["[" * 500, '\\"[' * 500]}}})
    assert isinstance(report(told.encode()), PythonResult)


def value(text: bytes) -> bytes:
    return b'{"result": {"kind": "value", "data": {"a": ' + text + b"}}}"


def test_what_would_take_too_long_to_look_through_is_left_out() -> None:
    brackets, texts = b"[" + b",".join([b"[]"] * MOST_PARTS) + b"]", b"[" + b",".join([b'""'] * MOST_PARTS) + b"]"
    assert report(value(brackets)) is None
    assert report(value(b"[" * 101 + texts + b"]" * 101)) is None
    for wide in (b"[" + b",".join([b"[]"] * 5000) + b"]", texts, b'["' + b"[" * 5000 + b'"]', b"[" * 100 + b"]" * 100):
        assert isinstance(report(value(wide)), PythonResult)


LARGE = (b"1e999", b"-1E+400", b"1.8e308", b"9" * 400 + b".0", b"9" * 400 + b"e-5", b"1e" + b"9" * 2000)
AS_LARGE_AS_CAN_BE = (b"1.7e308", b"9" * 999, b"9" * 400 + b"e-300", b"1e-999", b"1e" + b"0" * 900 + b"1")


@pytest.mark.parametrize(
    "around", [b"%b", b'{"a": [%b]}', b"[" + b"[]," * 200 + b"%b]", b"[" + b"1," * 32766 + b" %b]"]
)
def test_numbers_that_not_everybody_can_read_are_left_out(around: bytes) -> None:
    """Whoever reads the answer would lose all of it with one number."""
    for number in LARGE:
        assert report(value(around % number)) is None, number[:20]
    for number in (*AS_LARGE_AS_CAN_BE, b'"1e999"', b'"' + b"9" * 5000 + b'"'):
        assert isinstance(report(value(around % number)), PythonResult), number[:20]
        msgspec.json.decode(around % number)


def test_what_is_nearly_too_long_is_looked_at_once() -> None:
    """And not again from each of its digits: of all that a run may report that would take a minute."""
    assert isinstance(report(value(b"[" + b",".join([b"9" * 999] * 3000) + b"]")), PythonResult)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_whatever_is_taken_can_be_told_again(value: object) -> None:
    line = json.dumps({"result": {"kind": "display", "data": {"application/json": value}}}).encode()
    found = report(line)
    if found is not None:
        assert isinstance(found, PythonResult)
        assert json.loads(msgspec.json.encode(found))["data"]["application/json"] == value


@given(st.binary(max_size=200))
def test_bytes_of_every_kind(data: bytes) -> None:
    found = reports(data)
    msgspec.json.encode(found.results)
    assert found.lost >= 0
