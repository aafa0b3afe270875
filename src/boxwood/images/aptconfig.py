"""The host's settings of apt for reaching its mirrors: of apt.conf and apt.conf.d what is on the list, as one file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from boxwood.images import etc, urls
from boxwood.images.authorities import Authorities
from boxwood.images.hostfiles import HostFiles
from boxwood.images.omissions import GIVES_ACCESS, UNKNOWN, UNREADABLE, LeftOut, Omissions

TARGET = "/etc/apt/apt.conf.d/99boxwood-host"  # after those of the host that are in the image as they are
_TOOL = "apt"
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_TOKEN = re.compile(
    r'(?P<none>\s+|//[^\n]*|/\*.*?\*/|\#(?!clear\b|include\b)[^\n]*)|"(?P<text>[^"]*)"|(?P<mark>[{};])'
    r'|(?P<word>(?:(?!//|/\*)[^\s{};"])+)',
    re.S,
)
_METHOD = r"Acquire::https?(?:::[A-Za-z0-9_.-]+)?"  # for all hosts, or one
_PROXIES = re.compile(r"Acquire::(?:http|https|ftp)::Proxy(?:::[A-Za-z0-9_.-]+)?", re.I)
_AUTHORITY = re.compile(rf"{_METHOD}::CaInfo", re.I)
_PLAIN = re.compile(
    rf"Acquire::(?:Retries|Check-Valid-Until|Check-Date|Min-ValidTime|Max-ValidTime|Max-FutureTime|By-Hash|Queue-Mode"
    rf"|ForceIPv4|ForceIPv6)|{_METHOD}::(?:Timeout|Pipeline-Depth|No-Cache|No-Store|Max-Age|AllowRedirect|Verify-Peer"
    rf"|Verify-Host)",
    re.I,
)
_VALUE = re.compile(r"[0-9]{1,9}|true|false|yes|no|with|without|enable|disable|on|off|force|host|access", re.I)
_SECRETS = ("SslCert", "SslKey", "SslPassword", "Login", "ProxyLogin", "Proxy-Authorization", "Authorization",
            "Password")  # fmt: skip
_OTHERS = ("Proxy-Auto-Detect", "ProxyAutoDetect", "Dir", "Pre-Invoke", "Post-Invoke", "Post-Invoke-Success",
           "Pre-Install-Pkgs", "IssuerCert", "CrlFile", "User-Agent", "SourceSymlinks", "Options")  # fmt: skip
_NAMES = {name.lower(): name for name in (*_SECRETS, *_OTHERS)}


@dataclass(frozen=True, slots=True)
class _Setting:
    """`present`: the file in which it stands is in the image as it is."""

    name: str
    value: str
    present: bool


def apt_conf(host: HostFiles, authorities: Authorities, omissions: Omissions) -> str:
    """The text of the file; empty: the host has no settings to share."""
    cleared, lines = [], []
    for setting in _effective(host, omissions).values():
        name, value = setting.name, setting.value
        ours = any(pattern.fullmatch(name) for pattern in (_PROXIES, _AUTHORITY, _PLAIN))
        if not value or (not ours and (setting.present or not _is_told(name))):
            continue
        try:
            lines.append(f'{name} "{_shared(name, value, authorities, omissions)}";\n')
        except LeftOut as reason:
            omissions.leave_out(_TOOL, _name(name), str(reason))
            if ours:  # what is in the image as it is may have it, too
                cleared.append(f"#clear {name};\n")
    return "".join([*cleared, *lines])


def parse(configuration: str) -> Iterator[tuple[str, str | None]]:
    """Names in full and values, as apt's ReadConfigFile has them; None: the name and all below it are forgotten.

    :raises ValueError: not a configuration.
    """
    parents: list[str] = []
    words: list[str] = []
    for kind, text in _tokens(configuration):
        if kind != "mark":
            words.append(text)
            continue
        name, value = (words[0], "".join(words[1:]) if len(words) > 1 else None) if words else ("", None)
        if text == "{":
            parents.append(name)
            if value is not None:
                yield "::".join(parents), value
        elif name == "#clear":
            yield "::".join([*parents, *words[1:2]]), None
        elif words and name != "#include":
            yield ("::".join([*parents, name]), value) if value is not None else ("::".join([*parents, ""]), name)
        if text == "}":
            if not parents:
                raise ValueError("unbalanced")
            parents.pop()
        words = []
    if parents or words:
        raise ValueError("it ends too early")


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError("a quote that does not end")
        at = match.end()
        if match.lastgroup != "none" and match.lastgroup is not None:
            yield match.lastgroup, match[match.lastgroup]


def _effective(host: HostFiles, omissions: Omissions) -> dict[str, _Setting]:
    """What apt would have at the end, by names in small letters. Of a list it is the last: we share none."""
    settings: dict[str, _Setting] = {}
    for path in _paths(host):
        try:
            data = host.read(path) or b""
            said = list(parse(data.decode(errors="replace")))
        except (OSError, ValueError):
            omissions.leave_out(_TOOL, "a file of its configuration", UNREADABLE)
            continue
        present = etc.harmless(path.removeprefix("/etc/"), data)
        for name, value in said:
            key = name.lower()
            if value is None:
                settings = {k: v for k, v in settings.items() if k != key and not k.startswith(f"{key}::")}
            else:
                settings[key] = _Setting(name, value, present)
    return settings


def _paths(host: HostFiles) -> Iterator[str]:
    for name in host.names("/etc/apt/apt.conf.d"):
        if _PART.fullmatch(name) and ("." not in name or name.endswith(".conf")):
            yield f"/etc/apt/apt.conf.d/{name}"
    yield "/etc/apt/apt.conf"


def _shared(name: str, value: str, authorities: Authorities, omissions: Omissions) -> str:
    """The value as the image has it.

    :raises LeftOut: it is not shared.
    """
    if _PROXIES.fullmatch(name):
        if value in ("DIRECT", "false"):
            return value
        text, stripped = urls.proxy(value)
        if stripped:
            omissions.without_access(_TOOL, "Proxy")
        return text
    if _AUTHORITY.fullmatch(name):
        return authorities.adopt(value)
    if not _PLAIN.fullmatch(name):
        raise LeftOut(GIVES_ACCESS if _name(name) in _SECRETS else UNKNOWN)
    if not _VALUE.fullmatch(value):
        raise LeftOut("no such value")
    return value


def _is_told(name: str) -> bool:
    """Is it worth a word that this is not shared? Not what only says how apt works."""
    return _name(name) is not None or re.match(r"Acquire::(https?|ftp)::", name, re.I) is not None


def _name(name: str) -> str | None:
    """A name for the notes: its first or last part that we know."""
    if match := re.search(r"::(Proxy|CaInfo)(::|$)", name, re.I):
        return {"proxy": "Proxy", "cainfo": "CaInfo"}[match[1].lower()]
    parts = [part.lower() for part in name.split("::") if part]
    if parts and parts[0] == "dir":
        return "Dir"
    if _PLAIN.fullmatch(name):
        return name.rpartition("::")[2] if "::" in name else None
    return next((_NAMES[part] for part in reversed(parts) if part in _NAMES), None)
