"""The certificate authority of an installation, and the certificates that it signs for hosts as boxes ask for them.

Its key signs for any host, to those who trust it: the boxes of VMs whose policy needs it, and nobody else. It lies in
the data directory, for root alone; the proxy is given it by the server, and keeps it in memory.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import ssl
from collections import OrderedDict
from collections.abc import Iterator

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from boxwood.engine.policies import canonical

AUTHORITY_DAYS, HOST_DAYS = 3650, 90
_RENEWED_DAYS = 30  # after which a host has a new one
_MOST_CONTEXTS = 512
_NO_RENEGOTIATION = ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET


def make() -> tuple[bytes, bytes]:
    """A new authority: its certificate and its key, in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("Boxwood network policies")
    built = _builder(name, name, key.public_key(), AUTHORITY_DAYS)
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    built = built.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
    built = built.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return built.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM), _key_text(key)


class Mint:
    """ValueError: the key is not the certificate's."""

    def __init__(self, certificate: bytes, key: bytes) -> None:
        self._authority = x509.load_pem_x509_certificate(certificate)
        loaded = load_pem_private_key(key, None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ValueError("the authority's key is not of the kind that was made")
        if loaded.public_key() != self._authority.public_key():
            raise ValueError("the authority's key is another one's")
        self._signer = loaded
        self._key = ec.generate_private_key(ec.SECP256R1())  # of all hosts, as long as this process lives
        self._contexts: OrderedDict[tuple[str, bool], tuple[datetime.datetime, ssl.SSLContext]] = OrderedDict()

    def context(self, host: str, *, http2: bool, named: bool = True) -> ssl.SSLContext:
        """To be this host for a box. `named`: it is the server's name in TLS; else an address, where none is said."""
        now = datetime.datetime.now(datetime.UTC)
        made, context = self._contexts.pop((host, http2), (None, None))
        if made is None or context is None or now - made > datetime.timedelta(days=_RENEWED_DAYS):
            made, context = now, self._make(host, http2, named)
        self._contexts[host, http2] = made, context
        if len(self._contexts) > _MOST_CONTEXTS:
            self._contexts.popitem(last=False)
        return context

    def _make(self, host: str, http2: bool, named: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= _NO_RENEGOTIATION
        context.set_alpn_protocols(["h2", "http/1.1"] if http2 else ["http/1.1"])
        context.sni_callback = _Expected(host if named else None)
        with _file(self._certificate(host) + _key_text(self._key)) as path:
            context.load_cert_chain(path)
        return context

    def _certificate(self, host: str) -> bytes:
        alternative: x509.GeneralName
        try:
            alternative = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            alternative = x509.DNSName(host)
        subject = _name(host) if len(host) <= 64 else x509.Name([])
        built = _builder(subject, self._authority.subject, self._key.public_key(), HOST_DAYS)
        built = built.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        built = built.add_extension(_usage("digital_signature"), critical=True)
        built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        names = x509.SubjectAlternativeName([alternative])
        built = built.add_extension(names, critical=len(host) > 64)  # RFC 5280 4.2.1.6: where the subject is empty
        identified = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._signer.public_key())
        built = built.add_extension(identified, critical=False)
        return built.sign(self._signer, hashes.SHA256()).public_bytes(Encoding.PEM)


class _Expected:
    """OpenSSL reads the same name in a ClientHello as we did (hello.py)."""

    def __init__(self, name: str | None) -> None:
        self._name = name

    def __call__(self, tls: object, said: str | None, context: object) -> int | None:
        same = said is None if self._name is None else said is not None and canonical("host", said) == self._name
        return None if same else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME


@contextlib.contextmanager
def _file(text: bytes) -> Iterator[str]:
    """In memory: OpenSSL wants a path, and the process may write nowhere."""
    descriptor = os.memfd_create("certificate")
    try:
        os.write(descriptor, text)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    built = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    built = built.serial_number(x509.random_serial_number())
    day = datetime.timedelta(days=1)  # clocks of boxes are the host's, but nobody's are right
    return built.not_valid_before(now - day).not_valid_after(now + days * day)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*wanted: str) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: name in wanted for name in names})


def _key_text(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
