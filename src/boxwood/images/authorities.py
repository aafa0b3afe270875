"""Certificate authorities that the host's programs trust, all of them in the one bundle of an image.

What a setting of the host names (`cert`, `cafile`, `SSL_CERT_FILE` …) goes into that bundle, so that programs which
read no setting trust it too. Of a file certificates are taken and nothing else that is in it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import re
import shutil
import subprocess

from boxwood.images.hostfiles import HostFiles
from boxwood.images.omissions import NO_CERTIFICATE, LeftOut

BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)  # fmt: skip
_DIRECTORY = "/etc/ssl/certs"
# What update-ca-certificates makes the bundle of …
_SOURCES = ("/usr/share/ca-certificates", "/usr/local/share/ca-certificates")
_UPDATERS = ("/usr/sbin/update-ca-certificates", "/usr/bin/update-ca-certificates")
_ANCHORS = "/etc/pki/ca-trust/source/anchors"  # … and update-ca-trust
_DER = b"\x30"  # how a certificate starts
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")


class Authorities:
    """Of one host. `bundle`: the path, in the host and in its image, of the file that holds all."""

    def __init__(self, host: HostFiles) -> None:
        self._host = host
        self.bundle = next((name for name in BUNDLES if host.is_file(name)), BUNDLES[0])
        self._own = self._of_file(self.bundle)
        self._added: dict[bytes, None] = {}  # a set that keeps its order

    def adopt(self, name: str) -> str:
        """Trust what the host's file or directory `name` holds; the path that a setting of the image is to have.

        :raises LeftOut: it holds no certificate.
        """
        name = self._host.expanded(name)
        if not name.startswith("/") or not name.isprintable():
            raise LeftOut(NO_CERTIFICATE)
        place = self._host.real(name)
        if place == self._host.real(_DIRECTORY):
            return self.bundle  # the image has it, and it may hold what is trusted by nobody: servers' certificates
        found = self._of_directory(place) if self._host.is_directory(place) else self._of_file(place)
        if not found:
            raise LeftOut(NO_CERTIFICATE)
        self._added.update(found)
        return self.bundle

    def files(self) -> tuple[dict[str, bytes], dict[str, str]]:
        """What an image is to have of them: contents and links by path. Whoever makes the bundle anew in a VM gets the
        same one: what it is made of comes along."""
        added = [certificate for certificate in self._added if certificate not in self._own]
        files = {self._written(): b"".join(map(_pem, [*self._own, *added]))} if self._own or added else {}
        links: dict[str, str] = {}
        if self._host.is_directory(_ANCHORS):
            files |= {f"{_ANCHORS}/{_name(certificate)}.pem": _pem(certificate) for certificate in added}
        elif any(map(self._host.is_file, _UPDATERS)):
            loose = self._loose([*self._own, *added])
            for certificate in loose:
                source = f"{_SOURCES[-1]}/{_name(certificate)}.crt"
                files[source] = _pem(certificate)
                links[f"{_DIRECTORY}/{_name(certificate)}.pem"] = source
            links |= self._hashed(loose)
        return files, links

    def _written(self) -> str:
        """Where the bundle's own file is, if that is a part of the image."""
        real = self._host.real(self.bundle)
        return real if real.startswith("/etc/") else self.bundle

    def _loose(self, certificates: list[bytes]) -> list[bytes]:
        known: set[bytes] = set()
        for source in _SOURCES:
            for directory, _, names in os.walk(self._host.path(source)):
                for name in names:
                    known.update(
                        self._of_file(f"{source}/{os.path.relpath(directory, self._host.path(source))}/{name}")
                    )
        return [certificate for certificate in certificates if certificate not in known]

    def _hashed(self, certificates: list[bytes]) -> dict[str, str]:
        """The links by which OpenSSL finds a certificate in its directory: named by the hash of the subject."""
        links: dict[str, str] = {}
        program = shutil.which("openssl", path="/usr/bin:/bin:/usr/local/bin")
        if program is None:
            return links
        taken = {name for name in self._host.names(_DIRECTORY) if re.fullmatch(r"[0-9a-f]{8}\.[0-9]+", name)}
        for certificate in certificates:
            command = [program, "x509", "-noout", "-subject_hash"]
            said = subprocess.run(command, input=_pem(certificate), capture_output=True, env={}, check=False)
            if said.returncode or not re.fullmatch(rb"[0-9a-f]{8}", said.stdout.strip()):
                continue
            mark, number = said.stdout.strip().decode(), 0
            while f"{mark}.{number}" in taken:
                number += 1
            taken.add(f"{mark}.{number}")
            links[f"{_DIRECTORY}/{mark}.{number}"] = f"{_name(certificate)}.pem"
        return links

    def _of_file(self, name: str) -> dict[bytes, None]:
        """The certificates in it, in their order."""
        found: dict[bytes, None] = {}
        try:
            data = self._host.read(name) or b""
        except OSError:
            return found
        for block in _CERTIFICATE.findall(data):
            with contextlib.suppress(binascii.Error):
                certificate = base64.b64decode(b"".join(block.split()), validate=True)
                if certificate.startswith(_DER):
                    found[certificate] = None
        return found

    def _of_directory(self, names: str) -> dict[bytes, None]:
        found: dict[bytes, None] = {}
        for name in self._host.names(names):
            found |= self._of_file(f"{names}/{name}")
        return found


def _pem(certificate: bytes) -> bytes:
    text = base64.b64encode(certificate)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return b"\n".join([b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""])


def _name(certificate: bytes) -> str:
    return f"boxwood-{hashlib.sha256(certificate).hexdigest()[:16]}"
