"""The host's settings of pip as one /etc/pip.conf: what its files and the server's environment say, without secrets.

The grammar and the order are pip's own (its _internal/configuration.py): a later file overrides a key of a section, a
command's section overrides [global], PIP_* overrides all.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Callable

from boxwood.images import urls
from boxwood.images.authorities import Authorities
from boxwood.images.hostfiles import HostFiles
from boxwood.images.omissions import GIVES_ACCESS, OF_THIS_HOST, UNKNOWN, UNREADABLE, LeftOut, Omissions

TARGET = "/etc/pip.conf"
_TOOL = "pip"
_ALIASES = {"default-timeout": "timeout", "pypi-url": "index-url"}
_COMMANDS = {"install", "download", "wheel", "index", "lock", "list", "search"}
_LOCATIONS = {"index-url", "extra-index-url", "find-links"}  # several but for the first
_NUMBERS = {"timeout", "retries", "resume-retries"}
_TRUSTED = re.compile(r"[A-Za-z0-9_.*-]+(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](:[0-9]{1,5})?")
_YES_OR_NO = {"1", "0", "true", "false", "yes", "no", "on", "off"}
_WHY = {  # of what we know and do not share
    **dict.fromkeys(("cache-dir", "log", "constraint", "requirement", "target", "prefix", "root", "src"), OF_THIS_HOST),
    "client-cert": GIVES_ACCESS,
    "keyring-provider": UNKNOWN,
    "no-index": "nothing but paths of this host would be left",
}

_Sections = dict[str, dict[str, str]]


def pip_conf(host: HostFiles, authorities: Authorities, omissions: Omissions) -> str:
    """The text of the file; empty: the host has no settings to share."""
    told = _effective(host, omissions)
    if "cert" not in told.get("global", {}):  # pip's own HTTP library reads these two
        for name in ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
            if value := host.environ.get(name):
                told.setdefault("global", {})["cert"] = value
    shared: _Sections = {}
    for section, settings in told.items():
        for key, value in settings.items():
            if section != "global" and section not in _COMMANDS:
                omissions.leave_out(_TOOL, None, UNKNOWN)
                continue
            try:
                text = _shared(key, value, authorities, omissions)
            except LeftOut as reason:
                omissions.leave_out(_TOOL, key if key in _WHY or key in _CHECKS else None, str(reason))
            else:
                shared.setdefault(section, {})[key] = text
    return "\n".join(
        f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in sorted(settings.items()))
        for section, settings in sorted(shared.items())
    )


def _effective(host: HostFiles, omissions: Omissions) -> _Sections:
    """All that pip would read on the host, with its overrides done."""
    sections: _Sections = {}
    for path in _paths(host):
        for section, key, value in _read(host, path, omissions):
            sections.setdefault(section, {})[key] = value
    for name, value in host.environ.items():
        key = _normal(name[4:])
        if name.startswith("PIP_") and value and key not in ("config-file", "version", "help"):
            for settings in sections.values():
                settings.pop(key, None)
            sections.setdefault("global", {})[key] = value
    return {section: {key: value for key, value in settings.items() if value} for section, settings in sections.items()}


def _paths(host: HostFiles) -> list[str]:
    """Of configuration files, the strongest last."""
    own = host.environ.get("PIP_CONFIG_FILE", "")
    if own == os.devnull:
        return []
    places = (host.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
    paths = [*(f"{place}/pip/pip.conf" for place in places), "/etc/pip.conf"]
    if own and host.is_file(own):
        return [*paths, own]
    config = host.environ.get("XDG_CONFIG_HOME") or f"{host.home}/.config"
    return [*paths, f"{host.home}/.pip/pip.conf", f"{config}/pip/pip.conf"]


def _read(host: HostFiles, path: str, omissions: Omissions) -> list[tuple[str, str, str]]:
    """Section, key, value."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string((host.read(path) or b"").decode())
        found = [(section, *item) for section in parser.sections() for item in parser.items(section)]
    except (OSError, UnicodeDecodeError, configparser.Error):  # whose texts quote the file
        omissions.leave_out(_TOOL, "a pip.conf", UNREADABLE)
        return []
    return [(section, _normal(key), value or "") for section, key, value in found]


def _normal(name: str) -> str:
    name = name.lower().replace("_", "-").removeprefix("--")
    return _ALIASES.get(name, name)


def _shared(key: str, value: str, authorities: Authorities, omissions: Omissions) -> str:
    """The value as the image has it.

    :raises LeftOut: nothing of it is shared.
    """
    if key == "cert":
        return authorities.adopt(value)
    check = _CHECKS.get(key)
    if check is None:
        raise LeftOut(_WHY.get(key, UNKNOWN))
    words = value.split() if key in ("extra-index-url", "find-links", "trusted-host") else [value.strip()]
    kept = []
    for word in words:
        try:
            text, stripped = check(word)
        except LeftOut as reason:
            if len(words) == 1:
                raise
            omissions.leave_out(_TOOL, key, f"some of it: {reason}")
            continue
        if stripped:
            omissions.without_access(_TOOL, key)
        kept.append(text)
    if not kept:
        raise LeftOut(UNKNOWN)
    return "\n    ".join(kept)


def _location(text: str) -> tuple[str, bool]:
    if text.startswith(("/", ".", "~", "file:")):
        raise LeftOut(OF_THIS_HOST)
    return urls.harmless(text)


def _one_of(pattern: Callable[[str], object]) -> Callable[[str], tuple[str, bool]]:
    def check(text: str) -> tuple[str, bool]:
        if not pattern(text):
            raise LeftOut("no such value")
        return text, False

    return check


_CHECKS: dict[str, Callable[[str], tuple[str, bool]]] = {
    **dict.fromkeys(_LOCATIONS, _location),
    **dict.fromkeys(_NUMBERS, _one_of(re.compile(r"[0-9]{1,6}(\.[0-9]{1,3})?").fullmatch)),
    "trusted-host": _one_of(_TRUSTED.fullmatch),
    "proxy": urls.proxy,
    "disable-pip-version-check": _one_of(lambda text: text.lower() in _YES_OR_NO),
    "prefer-binary": _one_of(lambda text: text.lower() in _YES_OR_NO),
    "cert": _one_of(lambda text: False),  # named only: authorities see to it
}
