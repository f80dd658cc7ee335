"""TLS for servers and clients: certificates, keys, and connecting.

pyOpenSSL, which not every installation has, is loaded when there are files to read, and not before.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeoutError
from twisted.internet.interfaces import (
    IAddress,
    IHandshakeListener,
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.protocols.policies import WrappingFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from gearman_twisted.errors import ConfigError, NoServers
from gearman_twisted.package import install_command

if TYPE_CHECKING:
    from OpenSSL import SSL

# Seconds that a server has for its side of the handshake. One that speaks no TLS may wait for more bytes.
_PATIENCE = 30.0

# Verification errors of OpenSSL that have a text of their own.
_VERDICTS = {9: "is not valid yet", 10: "has expired"}


def require_tls() -> None:
    """Check that what TLS needs is installed.

    Raises:
        ConfigError: it is not; the message says how to install it.
    """
    # Without the second, Twisted only warns.
    for name in ("OpenSSL", "service_identity"):
        if find_spec(name) is None:
            command = install_command("gearman-twisted[tls]")
            raise ConfigError(f"TLS needs {name}, which is not installed: {command}")


def endpoint_host(endpoint: object) -> str | None:
    """Return the host that an endpoint connects to, None if that is not known."""
    # Twisted's endpoints have no public attributes.
    return getattr(endpoint, "_hostText", None) or getattr(endpoint, "_host", None)


def endpoint_name(endpoint: object) -> str:
    """Return the address of an endpoint, for people; its ``repr`` if it has none that is known."""
    host, port, path = (
        endpoint_host(endpoint),
        getattr(endpoint, "_port", None),
        getattr(endpoint, "_path", None),
    )
    if host is not None and port is not None:
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return repr(endpoint) if path is None else f"unix:{path}"


def _is_ip(host: str) -> bool:
    return isIPAddress(host) or isIPv6Address(host)


@implementer(IOpenSSLServerConnectionCreator)
class ServerTls:
    """TLS settings of a server. It does not ask for certificates of its peers.

    Args:
        certificate: a file with the server's certificate, and those between it and the CA's, if there are.
        key: a file with the private key of the certificate; not encrypted.
        ca_file: a file with the certificates of the CA, from which those between are taken if they are
            missing there.

    Raises:
        ConfigError: there is no pyOpenSSL, or a file cannot be used; the message says which and why.
    """

    def __init__(self, certificate: str, key: str, ca_file: str | None = None) -> None:
        self._context = _new_context()
        if ca_file is not None:
            _load_ca(self._context, ca_file)
        _load_certificate(self._context, certificate, key)

    def serverConnectionForTLS(self, _protocol: object) -> SSL.Connection:
        """Return the TLS part of a connection that was accepted."""
        return _new_connection(self._context)

    def wrap(self, factory: IProtocolFactory) -> IProtocolFactory:
        """Return a factory for the layer below TLS; its connections speak TLS for those of a factory."""
        from twisted.protocols.tls import TLSMemoryBIOFactory

        wrapping: IProtocolFactory = TLSMemoryBIOFactory(self, False, factory)
        return wrapping


@implementer(IOpenSSLClientConnectionCreator)
class ClientTls:
    """TLS settings of a client: it connects only to servers whose certificate a CA has signed for their host.

    Args:
        ca_file: a file with the certificates of the CA.
        certificate: a file with the certificate that is shown to a server that asks; None for none.
        key: a file with the private key of that certificate; not encrypted.
        check_hostname: whether the certificate has to be for the host that is connected to. Without, any
            server will do whose certificate the CA has signed.

    Attributes:
        ca_file: see above.
        check_hostname: see above.

    Raises:
        ConfigError: there is no pyOpenSSL, or a file cannot be used; the message says which and why.
    """

    def __init__(
        self,
        ca_file: str,
        certificate: str | None = None,
        key: str | None = None,
        *,
        check_hostname: bool = True,
    ) -> None:
        self._context = _new_context()
        from OpenSSL import SSL

        _load_ca(self._context, ca_file)
        if certificate is not None and key is not None:
            _load_certificate(self._context, certificate, key)
        self._context.set_verify(SSL.VERIFY_PEER, self._judge)
        self._objections: WeakKeyDictionary[SSL.Connection, list[int]] = WeakKeyDictionary()
        self.ca_file = ca_file
        self.check_hostname = check_hostname

    def clientConnectionForTLS(self, _protocol: object) -> SSL.Connection:
        """Return the TLS part of a new connection."""
        connection = _new_connection(self._context)
        self._objections[connection] = []
        return connection

    def objections(self, connection: SSL.Connection) -> list[int]:
        """Return what is wrong with the certificate that a server showed, as OpenSSL numbers it.

        Args:
            connection: what ``clientConnectionForTLS`` made; the list fills during the handshake.
        """
        return self._objections[connection]

    def _judge(
        self, connection: SSL.Connection, _certificate: object, code: int, _depth: int, is_good: int
    ) -> bool:
        if not is_good:
            self._objections[connection].append(code)
        return bool(is_good)


@implementer(IStreamClientEndpoint, IOpenSSLClientConnectionCreator)
class TlsEndpoint:
    """Connects with TLS over another endpoint; nothing is sent before the server's certificate is verified.

    Twisted's ``wrapClientTLS`` reports a connection before the handshake, so that a client that tries several
    servers would stay with one whose certificate is refused a moment later.

    Args:
        reactor: the reactor, for the time.
        endpoint: what to connect with, below TLS.
        tls: the settings.
        host: the name, or the IP address, that the server's certificate has to be for; if None, the host that
            the endpoint connects to.

    Raises:
        ConfigError: the host is to be checked, and the endpoint does not say which it is.
    """

    def __init__(
        self, reactor: Any, endpoint: IStreamClientEndpoint, tls: ClientTls, host: str | None = None
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._tls = tls
        self._host = None
        if tls.check_hostname:
            self._host = host or endpoint_host(endpoint)
            if self._host is None:
                raise ConfigError(
                    f"the host of {endpoint!r} is not known: give TlsEndpoint its name as host, or use "
                    "ClientTls(..., check_hostname=False)"
                )

    def __repr__(self) -> str:
        return f"{endpoint_name(self._endpoint)} with TLS"

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:  # noqa: N803 - IStreamClientEndpoint
        """Connect.

        Returns:
            A Deferred that fires with the protocol when the server's certificate was found good, or fails
            with ``NoServers``, or as the endpoint does. ``cancel()`` aborts the connection.
        """
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        from twisted.protocols.tls import TLSMemoryBIOFactory

        handshakes = _HandshakeFactory(factory, self._check_host)
        wrapping = TLSMemoryBIOFactory(self, True, handshakes)
        connection: Any = await self._endpoint.connect(wrapping)
        handshake: _Handshake = connection.wrappedProtocol
        # Now, as a connection that is lost has no TLS part any more.
        objections = self._tls.objections(connection.getHandle())
        handshake.done.addTimeout(_PATIENCE, self._reactor)
        try:
            return await handshake.done
        except DeferredTimeoutError as error:
            raise NoServers(
                f"no answer to the TLS handshake within {_PATIENCE:g} seconds; does it speak TLS there?"
            ) from error
        except _HandshakeLost as error:
            raise NoServers(self._why(objections, error.reason)) from error

    def clientConnectionForTLS(self, protocol: object) -> SSL.Connection:
        """Return the TLS part of a new connection, which names the host to the server."""
        connection = self._tls.clientConnectionForTLS(protocol)
        if self._host is not None and not _is_ip(self._host):
            connection.set_tlsext_host_name(self._host.encode("idna"))
        return connection

    def _check_host(self, connection: SSL.Connection) -> str:
        """Return what is wrong with the name in a server's certificate; empty if nothing is."""
        if self._host is None:
            return ""
        from service_identity import CertificateError, VerificationError
        from service_identity.pyopenssl import verify_hostname, verify_ip_address

        try:
            if _is_ip(self._host):
                verify_ip_address(connection, self._host)
            else:
                verify_hostname(connection, self._host)
        except (CertificateError, VerificationError):
            return (
                f"its TLS certificate is not for {self._host}; if that is right, connect with "
                "ClientTls(..., check_hostname=False)"
            )
        return ""

    def _why(self, objections: list[int], reason: BaseException | None) -> str:
        if objections:
            code = objections[0]
            verdict = _VERDICTS.get(code)
            if verdict is not None:
                return f"its TLS certificate, or one behind it, {verdict}"
            return f"{self._tls.ca_file} does not vouch for its TLS certificate (error {code} of OpenSSL)"
        text = error_text(reason)
        # Who sends an alert speaks TLS.
        question = "" if " alert " in text else "; does it speak TLS there?"
        return f"the TLS handshake failed: {text}{question}"


class _HandshakeLost(Exception):
    """The connection was lost before it spoke TLS.

    Attributes:
        reason: of the loss.
    """

    def __init__(self, reason: BaseException | None) -> None:
        super().__init__(reason)
        self.reason = reason


@implementer(IHandshakeListener)
class _Handshake(Protocol):
    """Stands for a protocol until the handshake is done."""

    transport: Any  # TLSMemoryBIOProtocol

    def __init__(self, protocol: IProtocol, check_host: Callable[[SSL.Connection], str]) -> None:
        self._protocol = protocol
        self._check_host = check_host
        self.done: Deferred[IProtocol] = Deferred(lambda _: self.transport.abortConnection())

    def handshakeCompleted(self) -> None:
        """Give its place to the protocol, for which the connection begins now."""
        objection = self._check_host(self.transport.getHandle())
        if objection:
            self.transport.abortConnection()
            self.done.errback(NoServers(objection))
            return
        self.transport.wrappedProtocol = self._protocol
        self._protocol.makeConnection(self.transport)
        self.done.callback(self._protocol)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail, unless it was given up."""
        if not self.done.called:
            self.done.errback(_HandshakeLost(reason.value))


class _HandshakeFactory(WrappingFactory):
    noisy = False

    def __init__(self, factory: IProtocolFactory, check_host: Callable[[SSL.Connection], str]) -> None:
        super().__init__(factory)  # type: ignore[no-untyped-call]
        self._check_host = check_host

    def buildProtocol(self, addr: IAddress | None) -> Any:
        protocol = self.wrappedFactory.buildProtocol(addr)
        return None if protocol is None else _Handshake(protocol, self._check_host)


def _new_context() -> SSL.Context:
    require_tls()
    from twisted.internet.ssl import CertificateOptions

    # For its choice of versions and ciphers.
    context: SSL.Context = CertificateOptions().getContext()
    return context


def _new_connection(context: SSL.Context) -> SSL.Connection:
    from OpenSSL import SSL

    return SSL.Connection(context, None)


def _load_ca(context: SSL.Context, path: str) -> None:
    from OpenSSL import SSL

    _read(path, "CA certificates")
    try:
        context.load_verify_locations(path)
    except SSL.Error as error:
        raise ConfigError(f"the TLS CA certificates {path} cannot be used: {error_text(error)}") from error


def _load_certificate(context: SSL.Context, certificate: str, key: str) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from OpenSSL import SSL

    _read(certificate, "certificate")
    try:
        context.use_certificate_chain_file(certificate)
    except SSL.Error as error:
        raise ConfigError(f"the TLS certificate {certificate} cannot be used: {error_text(error)}") from error
    content = _read(key, "key")
    try:
        # Looked at first, as OpenSSL would ask for a passphrase on the terminal.
        load_pem_private_key(content, password=None)
    except TypeError as error:
        raise ConfigError(
            f"the TLS key {key} is encrypted; give one without a passphrase: openssl pkey -in {key}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"the TLS key {key} cannot be used: it is not a private key in PEM") from error
    try:
        context.use_privatekey_file(key)
        context.check_privatekey()
    except SSL.Error as error:
        raise ConfigError(
            f"the TLS key {key} does not fit the certificate {certificate}: {error_text(error)}"
        ) from error


def _read(path: str, what: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"the TLS {what} {path} cannot be read: {error.strerror}") from error


def error_text(error: BaseException | None) -> str:
    """Return the text of an error of OpenSSL, or of a connection."""
    # Of OpenSSL: a list of library, function and reason, the cause first.
    first = error.args[0] if error is not None and error.args else None
    if isinstance(first, list) and first:
        return str(first[0][-1])
    return str(error)
