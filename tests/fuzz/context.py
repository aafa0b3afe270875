"""What a Python context says of a run, all of which the run can forge, on its way to clients: at once and bit by bit.

The first byte says how large the pieces are in which the rest comes.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from boxwood.server.events import event
from boxwood.server.exchange import encode
from boxwood.server.routes.following import Sayings
from boxwood.server.schema.python import MOST_RESULTS, reports
from fuzz.target import joined, lines

SEEDS = (
    b"\xff" + joined([
        b'{"context":{"new":true,"number":1,"lost":null}}',
        b'{"result":{"kind":"value","data":{"text/plain":"1","application/json":{"a":[1,2.5e3,null]}},"truncated":{"text/html":9}}}',
        b'{"result":{"kind":"figure","data":{"image/png":"iVBORw0KGgo="}}}',
        b'{"error":{"name":"E","value":"v","traceback":"t","frames":[{"file":"f","line":1,"name":"n","source":"s"}]}}',
        b'{"dropped":3}',
        b"",
    ]),
    b"\5" + joined([b'{"result":{"kind":"display","data":{}}}', b"nonsense", b'{"dropped":1}', b"{"]),
)  # fmt: skip
WORDS = (
    *lines(
    '{"result":{"kind":"value","data":{', '"kind":', '"display"', '"data":', '"application/json":', '"truncated":', '{"error":{',
    '"frames":[', '"line":', '{"context":{', '"number":', '"lost":', '{"dropped":', "null", "true", "-1", "1e999", "NaN", "\n",
    "[" * 120, "]" * 120, '{"a":', "}}}", '"\\ud800"', '"\\u0000"', "9" * 5000, "\r", "\r\n", "\u2028", "\\",
    ), b"\xff", b"\xc3", b"\xed\xa0\x80",
)  # fmt: skip


def check(data: bytes) -> None:
    size, said = max(data[0], 1) if data else 1, data[1:]
    found = reports(said)
    assert len(found.results) <= MOST_RESULTS and found.lost >= 0
    told = encode([found.results, found.exception, found.context])
    json.loads(told.decode())
    msgspec.json.decode(told)  # as the SDK reads it: it takes no number that is infinite
    bits, events = Sayings(0), list[tuple[str, Any, int]]()
    for at in range(0, len(said), size):
        events += bits.take(said[at : at + size])
    assert bits.at == said.rfind(b"\n") + 1
    for name, told, _ in events:
        text = event(name, told, "0.0.0").decode()
        assert "\r" not in text and text.count("\n") == 4, "an event has other lines than its own"
        json.loads(text.split("\n")[2].removeprefix("data: "))
    results = [told for name, told, _ in events if name == "result"]
    assert encode(results[:MOST_RESULTS]) == encode(found.results)
