"""A small certificate authority for fleets of one's own: no public name, no third party, devices trust it alone.

ECDSA on P-256, which every TLS library of the last decade knows. Everything goes in and out as PEM.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cema.errors import ConfigError

AUTHORITY_DAYS = 20 * 365
"""Longer than a device lives: when its authority expires, a device has to be enrolled anew."""
CERTIFICATE_DAYS = 2 * 365
"""Of a server or a client; 'cema tls renew' makes the next one, devices notice nothing."""
SERVER_NAME = "cema server"
"""Subject of all servers' certificates: what counts there are the alternative names, which may be longer."""
_BACKDATED = timedelta(days=1)
"""A device's clock may lag behind."""
_NO_USES = dict.fromkeys(
    (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    ),
    False,
)  # fmt: skip


class Pair(NamedTuple):
    """A certificate and its private key, PEM."""

    certificate: bytes
    key: bytes


def make_authority(name: str, now: datetime) -> Pair:
    """A self-signed authority that may sign servers and clients, but no further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(name, _name(name), key.public_key(), key.public_key(), now, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    uses = x509.KeyUsage(**_NO_USES | {"key_cert_sign": True, "crl_sign": True})
    return _signed(builder.add_extension(uses, critical=True), key, key)


def issue(
    authority: Pair, names: Sequence[str], now: datetime, *, client: bool = False, days: int = CERTIFICATE_DAYS,
    key: bytes | None = None,
) -> Pair:  # fmt: skip
    """A certificate for a server under these names and addresses, or for the client of that name.

    key: keep this one (PEM) instead of making a new one. Raises ConfigError for bytes that are no PEM, or not ours.
    """
    issuer, issuer_key = certificate_of(authority.certificate), _private_key(authority.key)
    own_key = ec.generate_private_key(ec.SECP256R1()) if key is None else _private_key(key)
    subject = names[0] if client else SERVER_NAME
    builder = _builder(subject, issuer.subject, own_key.public_key(), issuer_key.public_key(), now, days)
    purpose = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**_NO_USES | {"digital_signature": True}), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    )
    if not client:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(_general_name, names))), critical=False)
    return _signed(builder, own_key, issuer_key)


def names_of(certificate: bytes) -> list[str]:
    """The names and addresses that a server's certificate is for. Raises ConfigError."""
    try:
        found = certificate_of(certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound as error:
        raise ConfigError("expected the certificate of a server, got one without names") from error
    return [str(name.value) for name in found.value]


def certificate_of(pem: bytes) -> x509.Certificate:
    """The first certificate of a PEM file. Raises ConfigError."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigError(f"expected a certificate (PEM): {error}") from error


def _private_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"expected a private key (PEM, no password): {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("expected an elliptic-curve key, as 'cema tls init' makes them")
    return key


def _builder(
    name: str, issuer: x509.Name, own: ec.EllipticCurvePublicKey, issuing: ec.EllipticCurvePublicKey, now: datetime,
    days: int,
) -> x509.CertificateBuilder:  # fmt: skip
    now = now.astimezone(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer)
        .public_key(own)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuing), critical=False)
    )


def _signed(builder: x509.CertificateBuilder, own: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        builder.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
        own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _name(text: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
    except ValueError as error:
        raise ConfigError(f"expected a name of 1 to 64 characters, got {text!r}") from error


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        pass
    try:
        if text:
            return x509.DNSName(text)
    except ValueError:
        pass
    raise ConfigError(f"expected a DNS name in ASCII or an IP address, got {text!r}")
