"""TLS 1.3 for links: the channel is encrypted by TLS and authenticated by node keys, never by a CA.

The accepting side shows a self-signed certificate whose only meaning is its public key. OpenSSL proves possession of
that key in the TLS handshake (CertificateVerify) even where no CA is consulted; we then compare the key.
"""

import datetime
import os
import ssl
from typing import Any

import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from ioc_wire.errors import WrongPeer
from ioc_wire.identity import format_node_id, node_id_of
from ioc_wire.signed import public_bytes

# RFC 5280, 4.1.2.5: a certificate without a well-defined end; its dates mean nothing here and are never checked.
_NOT_BEFORE = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_NOT_AFTER = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)


def server_context(key: Ed25519PrivateKey) -> ssl.SSLContext:
    """The accepting side's context, with a certificate of this node's key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # a resumed connection would not show a certificate
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    # ssl reads certificates from files only; an anonymous file in memory keeps the key off every disk.
    file = os.memfd_create("node-certificate", os.MFD_CLOEXEC)
    try:
        os.write(file, pem + _certificate(key).public_bytes(Encoding.PEM))
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
    return context


def client_context() -> ssl.SSLContext:
    """The dialing side's context: any certificate is taken, because its key is checked afterwards."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def certificate_key(channel: trio.SSLStream[trio.abc.Stream]) -> bytes:
    """The Ed25519 key, 32 bytes, of the certificate that the peer showed; raises `WrongPeer` if it has none."""
    certificate: Any = channel.getpeercert(binary_form=True)
    try:
        key = x509.load_der_x509_certificate(certificate or b"").public_key()
    except (ValueError, TypeError) as error:
        raise WrongPeer(f"its certificate cannot be read ({error})") from None
    if not isinstance(key, Ed25519PublicKey):
        raise WrongPeer("its certificate has no Ed25519 key")
    return key.public_bytes_raw()


def _certificate(key: Ed25519PrivateKey) -> x509.Certificate:
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, format_node_id(node_id_of(public_bytes(key))))],
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .sign(key, None)
    )
