"""Public keys that may log in to a VM over SSH, as the contract has them: an object by ids, which is merged, or a list
of lines as in authorized_keys, which replaces all.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from boxwood.core import clock, words

MOST = 64  # of one VM
KEY_CHARACTERS, NAME_CHARACTERS = 16_384, 255
KINDS = frozenset({
    "ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa",
    "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com",
})  # fmt: skip
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_FIELD = "ssh_public_keys"


@dataclass(frozen=True, slots=True)
class SshKey:
    """`public_key`: kind and key, without a comment. `expires_at`: microseconds since 1970."""

    public_key: str
    fingerprint: str
    name: str | None = None
    expires_at: int | None = None

    @property
    def over(self) -> bool:
        return self.expires_at is not None and self.expires_at <= clock.now()


Keys = dict[str, SshKey]


def stored(text: str | None) -> Keys:
    return {ident: SshKey(**fields) for ident, fields in json.loads(text).items()} if text else {}


def to_store(keys: Keys) -> str | None:
    return json.dumps({ident: asdict(key) for ident, key in keys.items()}) if keys else None


def updated(before: Keys, update: Any) -> Keys:
    """What `before` becomes. BadRequest."""
    if isinstance(update, Mapping):
        found = dict(before)
        for ident, said in update.items():
            at = f"{_FIELD}.{str(ident)[:64]}"
            if not isinstance(ident, str) or not _ID.fullmatch(ident):
                raise words.refuse(at, "an id is 1 to 64 small letters, digits, '.', '_' or '-', no sign first")
            found.pop(ident, None)
            if said is not None:
                found[ident] = _entry(at, said)
    elif isinstance(update, list | tuple):
        entries = [_key(f"{_FIELD}[{at}]", line) for at, line in enumerate(update)]
        found = {_derived(key): key for key in entries}
        if len(found) < len(entries):
            raise words.refuse(_FIELD, "the same key is there twice")
    else:
        raise words.refuse(_FIELD, "an object of keys by their ids, or a list of lines as in authorized_keys")
    if len(found) > MOST:
        raise words.refuse(_FIELD, f"at most {MOST} keys")
    if len({key.fingerprint for key in found.values()}) < len(found):
        raise words.refuse(_FIELD, "the same key is there under two ids")
    return found


def _entry(at: str, said: Any) -> SshKey:
    if not isinstance(said, Mapping) or "public_key" not in said:
        raise words.refuse(at, "an object with public_key, and name and expires_at if you like; null takes it away")
    if unknown := said.keys() - {"public_key", "name", "expires_at"}:
        raise words.refuse(f"{at}.{sorted(map(str, unknown))[0][:64]}", "there is no such member")
    key, name = _key(f"{at}.public_key", said["public_key"]), said.get("name")
    if name is not None and (not isinstance(name, str) or len(name) > NAME_CHARACTERS):
        raise words.refuse(f"{at}.name", f"a text of at most {NAME_CHARACTERS} characters")
    if name is not None:
        words.text(f"{at}.name", name)
    return SshKey(key.public_key, key.fingerprint, name, _moment(f"{at}.expires_at", said.get("expires_at")))


def _key(at: str, line: Any) -> SshKey:
    """Of a line without options; what stands behind the key is a comment."""
    if not isinstance(line, str) or len(line) > KEY_CHARACTERS or not line.isprintable():
        raise words.refuse(at, f"one line, at most {KEY_CHARACTERS} characters")
    kind, _, rest = line.strip().partition(" ")
    body = rest.strip().partition(" ")[0]
    if kind not in KINDS:
        raise words.refuse(at, f"must begin with one of {', '.join(sorted(KINDS))}: no options, no certificate")
    try:
        raw = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise words.refuse(at, "what follows the kind is no base64") from None
    inner = len(kind).to_bytes(4, "big") + kind.encode()
    if not raw.startswith(inner) or len(raw) < len(inner) + 32:
        raise words.refuse(at, f"is no {kind} key")
    digest = base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")
    return SshKey(f"{kind} {body}", f"SHA256:{digest}")


def _derived(key: SshKey) -> str:
    return "key-" + hashlib.sha256(key.public_key.encode()).hexdigest()[:16]


def _moment(at: str, value: Any) -> int | None:
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise words.refuse(at, "a time such as 2030-01-31T12:00:00Z, with its zone")
    return int(found.timestamp() * 1_000_000)
