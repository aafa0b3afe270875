"""The spellings in which secrets are hidden: those of common programs, and no more bytes than a proxy looks for."""

from __future__ import annotations

import html
import json
import urllib.parse
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwood.engine.policies import Malformed, all_spellings
from boxwood.engine.policies.document import secret_value
from boxwood.engine.policies.spellings import MOST_SPELT_BYTES, spellings

ODD = "k\"e'y/of\\ <ü>&m~o!r(e)*+\u2028.-_"
SPELT: dict[str, str] = {
    "itself": ODD,
    "Python, quote": urllib.parse.quote(ODD),
    "Python, quote_plus": urllib.parse.quote_plus(ODD),
    "Python, json": json.dumps(ODD)[1:-1],
    "Python, html": html.escape(ODD),
    "percent codes in small letters": "k%22e%27y%2fof%5c%20%3c%c3%bc%3e%26m~o%21r%28e%29%2a%2b%e2%80%a8.-_",
    "with a slash": "k%22e%27y/of%5c%20%3c%c3%bc%3e%26m~o%21r%28e%29%2a%2b%e2%80%a8.-_",
    "encodeURIComponent": "k%22e'y%2Fof%5C%20%3C%C3%BC%3E%26m~o!r(e)*%2B%E2%80%A8.-_",
    "encodeURI": "k%22e'y/of%5C%20%3C%C3%BC%3E&m~o!r(e)*+%E2%80%A8.-_",
    "URLSearchParams": "k%22e%27y%2Fof%5C+%3C%C3%BC%3E%26m%7Eo%21r%28e%29*%2B%E2%80%A8.-_",
    "JSON.stringify": "k\\\"e'y/of\\\\ <ü>&m~o!r(e)*+\u2028.-_",
    "PHP, json_encode": "k\\\"e'y\\/of\\\\ <\\u00fc>&m~o!r(e)*+\\u2028.-_",
    "PHP, unescaped Unicode": "k\\\"e'y\\/of\\\\ <ü>&m~o!r(e)*+\\u2028.-_",
    "Go, encoding/json": "k\\\"e'y/of\\\\ \\u003cü\\u003e\\u0026m~o!r(e)*+\\u2028.-_",
    "Go, EscapeString": "k&#34;e&#39;y/of\\ &lt;ü&gt;&amp;m~o!r(e)*+\u2028.-_",
    "PHP, htmlspecialchars": "k&quot;e&#039;y/of\\ &lt;ü&gt;&amp;m~o!r(e)*+\u2028.-_",
    "double quotes alone": "k&quot;e'y/of\\ &lt;ü&gt;&amp;m~o!r(e)*+\u2028.-_",
    "JavaScript, by hand": "k&quot;e&#39;y/of\\ &lt;ü&gt;&amp;m~o!r(e)*+\u2028.-_",
}


@pytest.mark.parametrize("program", SPELT)
def test_spellings_of_common_programs(program: str) -> None:
    assert SPELT[program].encode() in spellings(ODD)


@pytest.mark.parametrize("secret", ["sk-0123456789abcdefXYZ", "eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmF0dXJl_-"])
def test_keys_as_they_are_made_have_one(secret: str) -> None:
    assert spellings(secret) == {secret.encode()}


@pytest.mark.parametrize(("secret", "count"), [("12345", 0), ("a/\"'é"[:5], 0), ("a" * 16384, 1), ('"' * 4097, 1)])
def test_too_short_and_too_long(secret: str, count: int) -> None:
    assert len(spellings(secret)) == count


UNDONE: list[Callable[[str], str]] = [str, urllib.parse.unquote, urllib.parse.unquote_plus, html.unescape]


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=6, max_size=30))
def test_each_is_the_secret_again_once_undone(secret: str) -> None:
    for one in spellings(secret):
        text = one.decode()
        read = {undo(text) for undo in UNDONE}
        try:
            read.add(json.loads(f'"{text}"'))
        except ValueError:
            pass
        assert {secret, secret.strip()} & read


@pytest.mark.parametrize("mark", ['"', "'", "<", "/", "é", "\U0001f511", "&", " a"])
def test_a_secret_that_takes_too_much_is_refused(mark: str) -> None:
    """However it is made up, what is taken is within the bound."""
    for secret in (mark * 1000, mark * 2000, f"\"'/<{mark}" * 800):
        size = sum(map(len, spellings(secret)))
        if size <= MOST_SPELT_BYTES:
            assert secret_value("value", secret) == secret
        else:
            with pytest.raises(Malformed, match=r"131072 bytes") as refused:
                secret_value("value", secret)
            assert secret not in str(refused.value)
    assert len(all_spellings("secrets", [ODD, ODD, ODD + "x"])) == len(spellings(ODD) | spellings(ODD + "x"))
