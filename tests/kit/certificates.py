"""A certificate authority of the tests' own, and certificates of all kinds."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.kit.servers import PATIENCE, WirePeer

_DAY = dt.timedelta(days=1)
_Issuer = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


class Certificates:
    """Files in a directory: of each name the certificate, ``.pem``, and its key, ``.key``.

    There are ``ca`` and ``other-ca``; of the former ``server``, ``client`` and ``expired``, and ``chained``
    by way of another one that stands in the same file; and ``server.encrypted.key``, which has a passphrase.
    ``local`` is for 127.0.0.1 and localhost, ``elsewhere`` for elsewhere.example; the others are for no host.

    Args:
        directory: where they are made.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        ca = self._make("ca", None, is_ca=True)
        self._make("other-ca", None, is_ca=True)
        _, key = self._make("server", ca)
        self._make("client", ca)
        self._make("expired", ca, days_left=-1)
        self._make("local", ca, hosts=[x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("localhost")])
        self._make("elsewhere", ca, hosts=[x509.DNSName("elsewhere.example")])
        between = self._make("between", ca, is_ca=True)
        self._make("chained", between)
        with Path(self["chained.pem"]).open("ab") as chained:
            chained.write(Path(self["between.pem"]).read_bytes())
        self._write("server.encrypted.key", key, serialization.BestAvailableEncryption(b"unknown"))

    def __getitem__(self, name: str) -> str:
        return str(self._directory / name)

    def _make(
        self,
        name: str,
        issuer: _Issuer | None,
        *,
        is_ca: bool = False,
        days_left: int = 3,
        hosts: Sequence[x509.GeneralName] = (),
    ) -> _Issuer:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = dt.datetime.now(dt.timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer[0].subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 9 * _DAY)
            .not_valid_after(now + days_left * _DAY)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        certificate = builder.sign(issuer[1] if issuer else key, hashes.SHA256())
        Path(self[f"{name}.pem"]).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self._write(f"{name}.key", key, serialization.NoEncryption())
        return certificate, key

    def _write(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        encryption: serialization.KeySerializationEncryption,
    ) -> None:
        content = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
        Path(self[name]).write_bytes(content)


class TlsPeer(WirePeer):
    """A connection to a server with the TLS of the standard library.

    Args:
        port: the server's, on loopback.
        ca_file: what the server's certificate is checked against.
    """

    def __init__(self, port: int, ca_file: str) -> None:
        super().__init__(port)
        context = ssl.create_default_context(cafile=ca_file)
        context.check_hostname = False
        self.socket = context.wrap_socket(self.socket)


class UncheckedPeer(WirePeer):
    """The same, whatever certificate the server has.

    Args:
        port: the server's, on loopback.
    """

    def __init__(self, port: int) -> None:
        super().__init__(port)
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.socket = context.wrap_socket(self.socket)


class Asking:
    """A server that asks for a certificate that its CA has signed, and speaks no further.

    Args:
        files: where its own certificate is.
        version: of TLS.
    """

    def __init__(self, files: Certificates, version: ssl.TLSVersion) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(files["server.pem"], files["server.key"])
        self._context.load_verify_locations(files["ca.pem"])
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.maximum_version = version
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = str(self._listening.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(PATIENCE)
        self._listening.close()

    def _serve(self) -> None:
        accepted, _ = self._listening.accept()
        wrapped = self._context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        with wrapped, suppress(OSError):
            with suppress(ssl.SSLError):
                wrapped.do_handshake()
            # Below TLS, until the peer closes: a reset would take the alert away.
            while socket.socket.recv(wrapped, 65536):
                pass
