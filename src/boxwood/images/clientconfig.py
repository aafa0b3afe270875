"""`--share-client-config`: the host's settings of pip, npm, apt and git that VMs need to use the host's mirrors.

Nothing is copied. Each tool's settings are read by its own grammar, what is on that tool's list is written anew, and
addresses lose who they let in; the notes tell the names of what was left out. Sessions read no profile, so all goes
into files that the tools read by themselves.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwood.images import aptconfig, aptsources, etc, npmconfig, pipconfig, skeleton
from boxwood.images.authorities import Authorities
from boxwood.images.hostfiles import HostFiles
from boxwood.images.omissions import GIVES_ACCESS, LeftOut, Omissions

_GIT = "/etc/gitconfig"
_BUNDLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS",
            "GIT_SSL_CAINFO")  # fmt: skip
_SEVERAL = "SSL_CERT_DIR"
_LINKS_MOST = 40


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """What an image gets: `files` and `links` by their paths in it. `notes`: what was not shared."""

    files: Mapping[str, bytes]
    links: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """Of what is shared. What is not, and the secrets next to it, leave no trace in it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        files = {path: base64.b64encode(data).decode() for path, data in self.files.items()}
        return json.dumps({"files": files, "links": dict(self.links)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ClientConfig:
        """What `to_json` made; it has no notes."""
        said: dict[str, Any] = json.loads(text)
        return cls({path: base64.b64decode(data) for path, data in said["files"].items()}, said["links"])


def gather(host: Path, environ: Mapping[str, str]) -> ClientConfig:
    """What the host whose root directory this is has to share. `environ`: of the server. Milliseconds."""
    here, omissions = HostFiles(host, environ), Omissions()
    authorities = Authorities(here)
    trusting = _trust(here, authorities, omissions)
    sources = aptsources.Sources(here, omissions)
    sources.read()
    texts = {
        pipconfig.TARGET: pipconfig.pip_conf(here, authorities, omissions),
        npmconfig.TARGET: npmconfig.npmrc(here, authorities, omissions),
        aptconfig.TARGET: aptconfig.apt_conf(here, authorities, omissions),
        _GIT: _gitconfig(authorities) if "GIT_SSL_CAINFO" in trusting else "",
    }
    settings = sources.files | {path: text.encode() for path, text in texts.items() if text}
    for path in [path for path, data in settings.items() if etc.gives_access(data)]:
        del settings[path]  # the last net: nothing should come so far
        omissions.leave_out("this host", path, GIVES_ACCESS)
    files, links = authorities.files()
    if npmconfig.TARGET in settings:
        links |= npmconfig.LINKS
    return ClientConfig(files | settings, links, omissions.notes())


def put(config: ClientConfig, root: Path) -> None:
    """Write it into an image. No file of the host is written into: they are replaced, as links may share them."""
    sources = _place(root, aptsources.LIST)
    for source in [sources, *_place(root, f"{aptsources.PARTS}/any").parent.iterdir()]:
        if source.suffix in (".list", ".sources"):
            source.unlink(missing_ok=True)
    for path, data in config.files.items():
        skeleton.write(_place(root, path), data)
    for path, target in config.links.items():
        place = _place(root, path)
        place.unlink(missing_ok=True)
        place.symlink_to(target)


def _trust(host: HostFiles, authorities: Authorities, omissions: Omissions) -> set[str]:
    """Adopt the authorities that variables name; which of them name some."""
    found = set()
    for variable in _BUNDLES:
        value = host.environ.get(variable, "")
        for name in value.split(":") if variable == _SEVERAL else [value]:
            if name:
                try:
                    authorities.adopt(name)
                    found.add(variable)
                except LeftOut as reason:
                    omissions.leave_out("certificates", variable, str(reason))
    return found


def _gitconfig(authorities: Authorities) -> str:
    text, _ = skeleton.FILES[_GIT.lstrip("/")]
    return f"{text}[http]\n\tsslCAInfo = {authorities.bundle}\n"


def _place(root: Path, path: str) -> Path:
    """The file's place in the image: links among its directories are followed inside, whatever they point to."""
    *waiting, name = path.strip("/").split("/")
    done: list[str] = []
    links = 0
    while waiting:
        part, *waiting = waiting
        if part == "..":
            done = done[:-1]
        elif (step := root.joinpath(*done, part)).is_symlink():
            if (links := links + 1) > _LINKS_MOST:
                raise OSError(f"too many links in the image on the way to {path}")
            target = os.readlink(step)
            done = [] if target.startswith("/") else done
            waiting = [word for word in target.split("/") if word not in ("", ".")] + waiting
        else:
            done.append(part)
    directory = root.joinpath(*done)
    directory.mkdir(parents=True, exist_ok=True)
    return directory / name
