"""Boxes whose requests are seen trust the authority that ends their TLS: its certificate is put into the VM.

It is written where the VM's own tools would put it, so `update-ca-certificates` in the VM keeps it, and no mount is in
that tool's way. VMs without such a policy have nothing of it; one whose policy is taken away keeps a certificate that
nobody uses. What has a bundle of its own is told of the system's by the usual variables.
"""

from __future__ import annotations

import errno
import logging
import os

from boxwood.engine.api import Box, EngineError, GuestError

# Debian and Alpine, Fedora, SUSE, and what OpenSSL reads where there is nothing else.
BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/ca-bundle.pem",
)  # fmt: skip
OWN = "/usr/local/share/ca-certificates/boxwood-policies.crt"
# For sessions: what brings authorities of its own (node, certifi, many builds of OpenSSL) looks here.
VARIABLES = {"NODE_EXTRA_CA_CERTS": OWN, "REQUESTS_CA_BUNDLE": BUNDLES[0], "SSL_CERT_FILE": BUNDLES[0]}
# Of a VM whose disk cannot be written: all that wants to know looks where the variables say.
RUN_OWN, RUN_BUNDLE = "/run/boxwood-policies/own.crt", "/run/boxwood-policies/all.crt"
RUN_VARIABLES = {
    "NODE_EXTRA_CA_CERTS": RUN_OWN, "REQUESTS_CA_BUNDLE": RUN_BUNDLE, "SSL_CERT_FILE": RUN_BUNDLE,
    "CURL_CA_BUNDLE": RUN_BUNDLE, "GIT_SSL_CAINFO": RUN_BUNDLE,
}  # fmt: skip
_MOST_BYTES = 8 << 20
log = logging.getLogger(__name__)


async def trust(box: Box, certificate: str, *, read_only: bool = False) -> None:
    """Let programs in the box trust this authority (PEM). Where that cannot be done TLS that is ended on the way fails,
    and nothing is let through that should not be. `read_only`: its disk cannot be written."""
    try:
        if read_only:
            await _trust_in_memory(box, certificate.encode())
            return
        known = False
        for bundle in BUNDLES:
            if (text := await _read(box, bundle)) is not None:
                known = True
                if certificate.encode() not in text:
                    await box.write_file(bundle, text.rstrip(b"\n") + b"\n" + certificate.encode())
        if not known:
            await box.write_file(BUNDLES[0], certificate.encode())
        if await _read(box, OWN) != certificate.encode():
            await box.write_file(OWN, certificate.encode())
    except (EngineError, OSError) as error:
        log.warning("VM %s does not trust the authority of network policies: %s", box.vm_id, error)


async def _trust_in_memory(box: Box, certificate: bytes) -> None:
    text = b""
    for bundle in BUNDLES:
        if found := await _read(box, bundle):
            text = found.rstrip(b"\n") + b"\n"
            break
    await box.write_file(RUN_BUNDLE, text + certificate, in_run=True)
    await box.write_file(RUN_OWN, certificate, in_run=True)


async def _read(box: Box, path: str) -> bytes | None:
    """None: there is no such file. GuestError."""
    try:
        found = await box.read_file(path)
    except GuestError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise
    try:
        if found.size > _MOST_BYTES:
            raise GuestError(errno.EFBIG, f"{path} is too large to be a list of authorities")
        text, place = b"", 0
        while piece := os.pread(found.fd, min(1 << 20, _MOST_BYTES + 1 - place), place):
            text += piece
            place += len(piece)
        return text
    finally:
        os.close(found.fd)
