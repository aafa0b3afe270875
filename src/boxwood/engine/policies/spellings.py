"""Secrets as servers that echo a request may show them: the spellings in which a proxy hides them, and how many.

All that a server answers is looked through for each of them, so all of a VM together are bounded: whoever writes a
secret must not slow down the proxy that all VMs of a host share.
"""

from __future__ import annotations

import html
import json
import re
import urllib.parse
from collections.abc import Iterable

from boxwood.engine.policies.reading import Malformed

MOST_SPELT_BYTES = 128 << 10  # of all spellings of all secrets of a VM
_SHORTEST = 6  # characters: what is shorter would be found in any text
_LONGEST = 4 << 10  # characters: what is longer is hidden as it is, and in no other spelling
_COMPONENT = "!'()*"  # which JavaScript's encodeURIComponent leaves as they are
_URI = ";,/?:@&=+$#!'()*"  # and its encodeURI
_PERCENT = re.compile("%[0-9A-F]{2}")
_DOUBLE = ('"', "&quot;", "&#34;")
_SINGLE = ("'", "&#39;", "&#x27;", "&#039;")


def spellings(secret: str) -> set[bytes]:
    """Itself, and as it is inside URLs, JSON and HTML; none of one too short to be hidden. Also without the spaces at
    its ends: as a header, it is sent without them."""
    return _spellings(secret) | _spellings(secret.strip())


def _spellings(secret: str) -> set[bytes]:
    if len(secret) < _SHORTEST:
        return set()
    if len(secret) > _LONGEST:
        return {secret.encode()}
    return {one.encode() for one in {secret} | _in_urls(secret) | _in_json(secret) | _in_html(secret)}


def _in_urls(secret: str) -> set[str]:
    found = {urllib.parse.quote(secret, safe=safe) for safe in ("", "/", _COMPONENT, _URI)}
    found |= {urllib.parse.quote_plus(secret), urllib.parse.quote_plus(secret, safe="*").replace("~", "%7E")}
    return found | {_PERCENT.sub(lambda code: code[0].lower(), one) for one in found}


def _in_json(secret: str) -> set[str]:
    plain = json.dumps(secret, ensure_ascii=False)[1:-1]
    found = {plain, json.dumps(secret)[1:-1], plain.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")}
    found |= {one.replace("/", "\\/") for one in found}
    return found | {one.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026") for one in found}


def _in_html(secret: str) -> set[str]:
    found = html.escape(secret, quote=False)
    return {found.replace('"', double).replace("'", single) for double in _DOUBLE for single in _SINGLE}


def all_spellings(at: str, secrets: Iterable[str]) -> set[bytes]:
    """Of all secrets of a VM. Malformed, with none of them in its text: too many bytes."""
    found, size = set[bytes](), 0
    for secret in secrets:
        new = spellings(secret) - found
        size += sum(map(len, new))
        if size > MOST_SPELT_BYTES:
            said = f"in all spellings that are hidden, as in URLs, JSON and HTML: at most {MOST_SPELT_BYTES} bytes"
            raise Malformed(at, f"too long {said}; use shorter ones, or letters and digits alone")
        found |= new
    return found
