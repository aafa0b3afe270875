"""The host's sources of packages and the keyrings they name, written anew from what is understood of them.

A source that needs somebody's access is left out as a whole: apt does not work at all where one of its sources
refuses it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

from boxwood.images import urls
from boxwood.images.hostfiles import HostFiles
from boxwood.images.omissions import OF_THIS_HOST, UNKNOWN, UNREADABLE, LeftOut, Omissions

LIST = "/etc/apt/sources.list"
PARTS = "/etc/apt/sources.list.d"
KEYRINGS = "/etc/apt/keyrings"
_TOOL = "apt"
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\.(list|sources)")
_ONE_LINE = re.compile(r"\s*(deb|deb-src)\s+(?:\[([^\]]*)\]\s*)?(\S+)((?:\s+\S+)+)\s*")
_WORD = re.compile(r"[A-Za-z0-9_.,/:+~$()*=-]{1,200}")
_OPTIONS = {"arch", "lang", "target", "pdiffs", "by-hash", "allow-insecure", "allow-weak", "trusted", "signed-by",
            "check-valid-until", "valid-until-min", "valid-until-max", "check-date", "date-max-future"}  # fmt: skip
_FIELDS = (_OPTIONS - {"arch", "lang", "target"}) | {"types", "suites", "components", "architectures", "languages",
                                                     "targets", "enabled"}  # fmt: skip
_PRESENT = ("/etc/apt/trusted.gpg.d/", f"{KEYRINGS}/", "/usr/share/", "/usr/lib/")  # the image has the host's
_ARMOURED = re.compile(rb"-----BEGIN PGP PUBLIC KEY BLOCK-----[\n\r][A-Za-z0-9+/=:. \t\r\n-]+?"
                       rb"-----END PGP PUBLIC KEY BLOCK-----")  # fmt: skip
_KEY_LINE = re.compile(r"(-----(BEGIN|END) PGP PUBLIC KEY BLOCK-----|\.|[A-Za-z0-9+/=]{1,80})?")
_PUBLIC_KEY = 6  # the tag of a packet of OpenPGP


class Sources:
    """`files`: contents by path, after `read`."""

    def __init__(self, host: HostFiles, omissions: Omissions) -> None:
        self.files: dict[str, bytes] = {}
        self._host = host
        self._omissions = omissions

    def read(self) -> None:
        self._file(LIST, self._one_lines)
        for name in self._host.names(PARTS):
            if match := _PART.fullmatch(name):
                self._file(f"{PARTS}/{name}", self._one_lines if match[1] == "list" else self._stanzas)
        if self._host.is_file("/etc/apt/auth.conf") or self._host.names("/etc/apt/auth.conf.d"):
            self._omissions.leave_out(_TOOL, "auth.conf", "secrets")

    def _file(self, path: str, understood: Callable[[str], list[str]]) -> None:
        try:
            text = (self._host.read(path) or b"").decode(errors="replace")
        except OSError:
            self._omissions.leave_out(_TOOL, "a file of sources", UNREADABLE)
            return
        if sources := understood(text):
            self.files[path] = "\n".join(sources).encode() + b"\n"

    def _one_lines(self, text: str) -> list[str]:
        sources = []
        for line in text.splitlines():
            line = line.partition("#")[0]
            if not line.strip():
                continue
            try:
                sources.append(self._one_line(line))
            except LeftOut as reason:
                self._omissions.leave_out(_TOOL, "a source of packages", str(reason))
        return sources

    def _one_line(self, line: str) -> str:
        match = _ONE_LINE.fullmatch(line)
        if match is None:
            raise LeftOut(UNKNOWN)
        options = []
        for option in (match[2] or "").split():
            name, _, value = option.partition("=")
            if name.rstrip("+-").lower() not in _OPTIONS:
                raise LeftOut(UNKNOWN)
            if name.lower() == "signed-by":
                value = ",".join(self._keyring(key) for key in value.split(","))
            options.append(f"{name}={_plain(value)}")
        shown = f"[{' '.join(options)}] " if options else ""
        return f"{match[1]} {shown}{self._location(match[3])} {' '.join(map(_plain, match[4].split()))}"

    def _stanzas(self, text: str) -> list[str]:
        stanzas = []
        for stanza in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n")):
            fields = _fields(stanza)
            if not fields:
                continue
            try:
                said = [(name, self._field(name, lines)) for name, lines in fields.items() if not _is_talk(name)]
                stanzas.append("".join(f"{name}:{value}\n" for name, value in said))
            except LeftOut as reason:
                self._omissions.leave_out(_TOOL, "a source of packages", str(reason))
        return stanzas

    def _field(self, name: str, lines: list[str]) -> str:
        """The field's value, with what comes between it and its name."""
        words = " ".join(lines).split()
        key = name.lower()
        if key == "uris":
            return " " + " ".join(map(self._location, words))
        if key == "signed-by" and any("-----" in line for line in lines):
            if not all(_KEY_LINE.fullmatch(line.strip()) or ": " in line for line in lines):
                raise LeftOut("a key that is not public")
            kept = [line.strip() for line in lines if ": " not in line and line.strip()]  # without what is said of it
            return "".join(f"\n {line}" for line in kept)
        if key == "signed-by":
            return " " + " ".join(self._keyring(word) for word in " ".join(words).replace(",", " ").split())
        if key.rstrip("+-") in _FIELDS or key in ("architectures-add", "architectures-remove"):
            return " " + " ".join(map(_plain, words))
        raise LeftOut(UNKNOWN)

    def _location(self, text: str) -> str:
        """:raises LeftOut: not on a network, or not without somebody's access."""
        if text.startswith("mirror+file:"):
            return self._mirrors(text.removeprefix("mirror+file:"))
        if text.startswith(("file:", "copy:", "cdrom:")):
            raise LeftOut(OF_THIS_HOST)
        mirror, location = ("mirror+", text[7:]) if text.startswith("mirror+") else ("", text)
        address, stripped = urls.harmless(location, ("http", "https", "mirror"))
        if stripped:
            raise LeftOut("it needs somebody's access")
        return mirror + address

    def _mirrors(self, path: str) -> str:
        """A list of mirrors in a file of apt's own directory, which comes along."""
        path = re.sub(r"^//(?=/)", "", path)
        if not re.fullmatch(r"/etc/apt/[A-Za-z0-9_.-]+", path):
            raise LeftOut(OF_THIS_HOST)
        kept = []
        for line in (self._read(path) or b"").decode(errors="replace").splitlines():
            address, *rest = line.partition("#")[0].split() or [""]
            if address:
                kept.append(" ".join([self._location(address), *map(_plain, rest)]).replace(" ", "\t", 1))
        if not kept:
            raise LeftOut("its mirrors are not there")
        self.files[path] = "\n".join(kept).encode() + b"\n"
        return f"mirror+file:{path}"

    def _read(self, path: str) -> bytes | None:
        try:
            return self._host.read(path)
        except OSError:
            raise LeftOut(UNREADABLE) from None

    def _keyring(self, word: str) -> str:
        """A key's fingerprint, or the path of a keyring as the image has it."""
        if not word.startswith("/"):
            return _plain(word)
        data = self._read(word)
        if data is None:
            raise LeftOut("its keyring is not there")
        if word.startswith(_PRESENT):
            return _plain(word)
        kept = _public(data)
        path = f"{KEYRINGS}/boxwood-{hashlib.sha256(kept).hexdigest()[:16]}.{'asc' if b'-----' in kept[:16] else 'gpg'}"
        self.files[path] = kept
        return path


def _fields(stanza: str) -> dict[str, list[str]]:
    """Names and lines of a stanza of deb822."""
    fields: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in stanza.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line[0] in " \t":
            lines.append(line)
        else:
            name, _, value = line.partition(":")
            lines = fields.setdefault(name.strip(), [])
            lines.append(value)
    return fields


def _is_talk(name: str) -> bool:
    """A field for people and other tools, which apt does not read."""
    return name.lower() == "description" or name.lower().startswith("x-")


def _plain(word: str) -> str:
    """:raises LeftOut: nothing that stands in a source's description, or an address with a user."""
    if not _WORD.fullmatch(word) or "://" in word:
        raise LeftOut(UNKNOWN)
    return word


def _public(data: bytes) -> bytes:
    """Of a keyring the public keys alone.

    :raises LeftOut: there are none.
    """
    if blocks := [block for block in _ARMOURED.findall(data) if b"PRIVATE" not in block]:
        lines = [line for block in blocks for line in block.splitlines() if b": " not in line]  # no comments
        return b"\n".join(lines) + b"\n"
    first = data[0] if data else 0
    tag = first & 0x3F if first & 0x40 else first >> 2 & 0xF
    if not first & 0x80 or tag != _PUBLIC_KEY:
        raise LeftOut("a key that is not public")
    return data
