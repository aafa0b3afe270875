"""The host's settings of npm as one file: what its npmrc files and the server's environment say, without secrets.

The grammar is that of npm's `ini` and of its config. Values with `${VARIABLE}` are left out: what npm would put there
is most often a token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

from boxwood.images import urls
from boxwood.images.authorities import Authorities
from boxwood.images.hostfiles import HostFiles
from boxwood.images.omissions import GIVES_ACCESS, OF_THIS_HOST, UNKNOWN, UNREADABLE, LeftOut, Omissions

TARGET = "/etc/npmrc"  # where Debian's npm looks …
LINKS = dict.fromkeys(("/usr/etc/npmrc", "/usr/local/etc/npmrc"), TARGET)  # … and one whose node is there
_TOOL = "npm"
_LINE = re.compile(r"\[([^\]]*)\]\s*|([^=]+)(?:=(.*))?")
_SCOPE = re.compile(r"@[A-Za-z0-9~_-][A-Za-z0-9~._-]*:registry")
_NUMBERS = ("fetch-retries", "fetch-retry-factor", "fetch-retry-mintimeout", "fetch-retry-maxtimeout", "fetch-timeout",
            "maxsockets")  # fmt: skip
_SWITCHES = ("strict-ssl", "audit", "fund", "update-notifier", "omit-lockfile-registry-resolved")
_HOSTS = re.compile(r"[A-Za-z0-9_.*:,/ -]{1,1000}")
_WHY = {  # of what we know and do not share
    **dict.fromkeys(("_auth", "_authToken", "_password", "username", "email", "otp"), GIVES_ACCESS),
    **dict.fromkeys(("cert", "key", "certfile", "keyfile"), GIVES_ACCESS),
    **dict.fromkeys(("prefix", "cache", "globalconfig", "userconfig", "nodedir", "tmp", "init-module"), OF_THIS_HOST),
    "ca": "only cafile is shared",
    "always-auth": UNKNOWN,
}
_OWN = {"user-agent", "node-gyp", "local-prefix", "global-prefix", "npm-version"}  # npm tells its children with these


def npmrc(host: HostFiles, authorities: Authorities, omissions: Omissions) -> str:
    """The text of the file; empty: the host has no settings to share."""
    told: dict[str, str] = {}
    for path in _paths(host):
        told |= _file(host, path, omissions)
    told |= _environment(host)
    if (bundle := host.environ.get("NODE_EXTRA_CA_CERTS")) and not told.get("cafile"):
        told["cafile"] = bundle
    lines = []
    for key, value in sorted(told.items()):
        if value in ("", "null"):
            continue
        try:
            lines.append(f"{key}={_shared(key, value, authorities, omissions)}\n")
        except LeftOut as reason:
            omissions.leave_out(_TOOL, _name(key), str(reason))
    return "".join(lines)


def parse(text: str) -> Iterator[tuple[str, str]]:
    """Keys and values outside of sections (which npm does not read), as `ini` has them."""
    for line in re.split(r"[\r\n]+", text):
        if re.match(r"\s*([;#]|$)", line) or not (match := _LINE.fullmatch(line)):
            continue
        if match[1] is not None:
            return
        yield _unquoted(match[2]), "true" if match[3] is None else _unquoted(match[3])


def _unquoted(text: str) -> str:
    """What npm calls `unsafe`: without quotes, or up to the comment."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        inner = text[1:-1] if text[0] == "'" else text
        try:
            value = json.loads(inner)
        except ValueError:
            return inner
        return value if isinstance(value, str) else inner
    plain = re.match(r"(?:\\.|[^\\;#])*\\?", text, re.S)
    assert plain is not None
    return re.sub(r"\\([\\;#])", r"\1", plain[0]).strip()


def _paths(host: HostFiles) -> Iterator[str]:
    """Of npmrc files, the strongest last. npm reads one global file of several that can be, where its node says."""
    yield from (TARGET, *LINKS)
    for directory in host.environ.get("PATH", "").split(":"):
        if directory.startswith("/") and host.is_file(f"{directory}/node"):
            yield host.real(f"{directory}/node").rpartition("/bin/")[0] + "/etc/npmrc"
            break
    environment = _environment(host)
    if prefix := environment.get("prefix"):
        yield f"{prefix}/etc/npmrc"
    if own := environment.get("globalconfig"):
        yield own
    yield host.expanded(environment.get("userconfig") or "~/.npmrc")


def _file(host: HostFiles, path: str, omissions: Omissions) -> dict[str, str]:
    try:
        data = host.read(path) or b""
    except OSError:
        omissions.leave_out(_TOOL, "an npmrc", UNREADABLE)
        return {}
    return dict(parse(data.decode(errors="replace")))


def _environment(host: HostFiles) -> dict[str, str]:
    found = {}
    for name, value in host.environ.items():
        if name.lower().startswith("npm_config_") and value:
            key = name[11:]
            key = key if key.startswith("//") else (key[:1] + key[1:].replace("_", "-")).lower()
            if key not in _OWN:
                found[key] = value
    return found


def _shared(key: str, value: str, authorities: Authorities, omissions: Omissions) -> str:
    """The value as the image has it.

    :raises LeftOut: it is not shared.
    """
    if key == "cafile":
        return authorities.adopt(value)
    if key == "registry" or _SCOPE.fullmatch(key):
        text, stripped = urls.harmless(value)
    elif key in ("proxy", "https-proxy"):
        text, stripped = urls.proxy(value)
    elif (pattern := _VALUES.get(key)) is not None:
        if not pattern(value):
            raise LeftOut("no such value")
        text, stripped = value, False
    else:
        raise LeftOut(_WHY.get(_name(key) or "", UNKNOWN))
    if stripped:
        omissions.without_access(_TOOL, key.rpartition(":")[2])
    return text


def _name(key: str) -> str | None:
    """A key for the notes: without the registry that it is for, in which a user may stand."""
    base = key.rpartition(":")[2].removesuffix("[]")
    lower = {name.lower(): name for name in (*_WHY, *_VALUES, "registry", "cafile", "proxy", "https-proxy")}
    return lower.get(base.lower())


_VALUES: dict[str, Callable[[str], object]] = {
    **dict.fromkeys(_NUMBERS, re.compile(r"[0-9]{1,9}").fullmatch),
    **dict.fromkeys(_SWITCHES, re.compile(r"true|false").fullmatch),
    "noproxy": _HOSTS.fullmatch,
    "replace-registry-host": re.compile(r"never|always|npmjs").fullmatch,
}
