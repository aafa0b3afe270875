"""A certificate authority of the server's own, and the certificate that it serves https with.

Both are made in the data directory at the first start. The authority stays, for clients have been given it; the
server's certificate is made anew when its end is near, or when the server listens under other names. Whoever has the
authority's key can pretend to be this server to those clients, and nothing else: it is in no system's list.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxwood.server import private

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397
RENEWED_DAYS = 60  # before its end
_ALWAYS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Identity:
    """Files: the authority's certificate, which clients are given; the server's, and its key."""

    authority: Path
    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.set_alpn_protocols(["http/1.1"])
        made.load_cert_chain(self.certificate, self.key)
        return made


def ensure(directory: Path, host: str) -> Identity:
    """Made, or made anew, as far as need be. `host`: what the server listens on. OSError, ValueError (a file there is
    not what it should be)."""
    directory.mkdir(mode=0o700, exist_ok=True)
    found = Identity(directory / "ca.crt", directory / "server.crt", directory / "server.key")
    names = names_of(host)
    if not found.authority.exists() or not (directory / "ca.key").exists():
        _make_authority(directory)
    if not _is_good(directory, found, names) or not _is_read(found):
        _make_server(directory, found, names)
    return found


def names_of(host: str) -> list[str]:
    """What clients may call a server that listens on this address, sorted."""
    plain = host.strip("[]").lower()
    try:
        unspecified = ipaddress.ip_address(plain).is_unspecified
    except ValueError:
        unspecified = False
    more = {socket.gethostname().lower(), *_addresses()} if unspecified else {plain}
    return sorted({*_ALWAYS, *filter(None, more)})


def _addresses() -> Iterable[str]:
    """Those of this machine, as the kernel lists them."""
    try:
        lines = Path("/proc/net/fib_trie").read_text().splitlines()
        for address, kind in itertools.pairwise(lines):
            if "/32 host LOCAL" in kind:
                yield address.split()[-1]
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            address6 = ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))
            if not address6.is_link_local:
                yield str(address6)
    except (OSError, ValueError):
        return


def _is_good(directory: Path, found: Identity, names: list[str]) -> bool:
    """As what was noted when it was made says: to read certificates would take longer than all else of a start."""
    try:
        noted = json.loads((directory / "server.json").read_text())
        until = datetime.fromisoformat(noted["until"])
        fits = noted["names"] == names and noted["authority"] == found.authority.read_text()
        there = found.certificate.exists() and found.key.exists()
        return bool(fits and there and datetime.now(UTC) < until - timedelta(days=RENEWED_DAYS))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False


def _is_read(found: Identity) -> bool:
    """Nothing has become of the files meanwhile, such as after a loss of power."""
    try:
        found.context()
    except OSError:  # ssl's errors too
        return False
    return True


# Making them


def _make_authority(directory: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"Boxwood of {socket.gethostname()}"[:64])
    usage = _usage(key_cert_sign=True, crl_sign=True)
    built = _builder(name, name, key.public_key(), AUTHORITY_DAYS)
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    built = built.add_extension(usage, critical=True)
    made = built.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    private.write(directory / "ca.key", _key_text(key))
    private.write(directory / "ca.crt", _signed(made, key))


def _make_server(directory: Path, found: Identity, names: list[str]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    authority = x509.load_pem_x509_certificate(found.authority.read_bytes())
    signer = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{directory}/ca.key is not the key that was made here")
    key = ec.generate_private_key(ec.SECP256R1())
    built = _builder(_name("boxwood"), authority.subject, key.public_key(), SERVER_DAYS)
    built = built.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    built = built.add_extension(_usage(digital_signature=True), critical=True)
    built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    built = built.add_extension(x509.SubjectAlternativeName(list(map(_alternative, names))), critical=False)
    built = built.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    identified = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    made = built.add_extension(identified, critical=False)
    (directory / "server.json").unlink(missing_ok=True)
    private.write(found.key, _key_text(key))
    private.write(found.certificate, _signed(made, signer))
    until = datetime.now(UTC) + timedelta(days=SERVER_DAYS)
    noted = {"names": names, "until": until.isoformat(), "authority": found.authority.read_text()}
    private.write(directory / "server.json", json.dumps(noted).encode())


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(**wanted: bool) -> x509.KeyUsage:
    from cryptography import x509

    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{**dict.fromkeys(names, False), **wanted})


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> Any:
    from cryptography import x509

    now = datetime.now(UTC)
    built = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    built = built.serial_number(x509.random_serial_number())
    return built.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=days))


def _signed(built: Any, key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import hashes, serialization

    text: bytes = built.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return text


def _key_text(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
