"""A blocking connection to a job server, for commands that ask something short.

Loading Twisted takes several times as long as a question and its answer, which is too long for health checks.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gearman_twisted.commands.servers import TlsFiles, loopbacks, name_another
from gearman_twisted.errors import ConfigError, ConnectionLost, NoServers, RemoteProtocolError
from gearman_twisted.wire.codec import Decoder, encode
from gearman_twisted.wire.constants import DEFAULT_PORT, REQ, RES, PacketType
from gearman_twisted.wire.hostport import split_host_port
from gearman_twisted.wire.text import ReplyReader

if TYPE_CHECKING:
    from ssl import SSLContext

# The first byte of an alert: the answer of a server that speaks TLS to a peer that does not.
_TLS_ALERT = b"\x15"
# What OpenSSL finds wrong with a certificate, where there is more to say than that nobody vouches for it.
_VERDICTS = {9: "is not valid yet", 10: "has expired"}

_NAME_ONE = "name one that it takes, and the key, with GEARMAN_CLIENT_PEM and GEARMAN_CLIENT_KEY"
# Alerts of a server that asks for a certificate, and was shown one.
_IS_REFUSED = re.compile(
    "alert (?:unknown ca|bad certificate|unsupported certificate|certificate (?:revoked|expired|unknown))"
)


class ServerConnection:
    """A connection to the first of several servers that can be connected to.

    Args:
        addresses: at least one: ``host``, ``host:port``, ``[IPv6]:port`` or ``unix:PATH``.
        files: those of TLS; None to connect without.
        timeout: seconds to wait for a connection, and then for each piece of an answer.

    Raises:
        ConfigError: an address is invalid, or a file cannot be used.
        NoServers: none can be connected to.
    """

    def __init__(self, addresses: Sequence[str], files: TlsFiles | None, timeout: float) -> None:
        self._timeout = timeout
        self._files = files
        self._socket, self._address = connect(addresses, files, timeout)

    def __enter__(self) -> ServerConnection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def ask(self, command: bytes) -> bytes:
        """Send a text command, and return the whole reply as it was sent.

        Args:
            command: without a line end.

        Raises:
            ConnectionLost: there was no reply in time, or the connection was lost.
            RemoteProtocolError: what came is no reply.
        """
        # DIFFERS: gearmand cuts a letter off the last word if the line ends with a bare LF.
        self._send(command + b"\r\n")
        replies = ReplyReader()
        reply = None
        while reply is None:
            replies.feed(self._receive(is_first=not replies.received))
            reply = replies.take(command)
        return reply

    def ping(self) -> None:
        """Have the server send back some bytes, in the packets that clients use.

        Raises:
            ConnectionLost: they did not come back in time, or the connection was lost.
            RemoteProtocolError: something else came.
        """
        self._send(encode(REQ, PacketType.ECHO_REQ, b"ping"))
        decoder = Decoder(RES)
        packets = decoder.feed(b"")
        while not packets:
            packets = decoder.feed(self._receive(is_first=True))
        if (packets[0].type, packets[0].args) != (PacketType.ECHO_RES, [b"ping"]):
            raise RemoteProtocolError(f"{self._address} is not a Gearman job server: it did not echo")

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._lost(self._alert() or error) from error

    def _alert(self) -> OSError | None:
        """Return what a server of TLS said before it closed the connection."""
        if self._files is not None:
            try:
                self._socket.recv(1)
            except OSError as error:
                if getattr(error, "reason", None):
                    return error
        return None

    def _receive(self, *, is_first: bool) -> bytes:
        try:
            data = self._socket.recv(1 << 20)
        except OSError as error:
            raise self._lost(error) from error
        if is_first and data.startswith(_TLS_ALERT):
            raise ConnectionLost(f"{self._address} speaks TLS; connect with -S")
        if not data:
            raise ConnectionLost(
                f"{self._address} closed the connection before it answered; if it speaks TLS, connect with -S"
            )
        return data

    def _lost(self, error: OSError) -> ConnectionLost:
        if isinstance(error, TimeoutError):
            return ConnectionLost(
                f"{self._address} does not answer: nothing came for {self._timeout:g} s; it hangs, or is busy"
            )
        reason = reason_of(error, self._files, is_connected=True)
        return ConnectionLost(f"lost the connection to {self._address}: {reason}")


def connect(addresses: Sequence[str], files: TlsFiles | None, timeout: float) -> tuple[socket.socket, str]:
    """Connect to the first of several servers that can be connected to; see ``ServerConnection``.

    Returns:
        The socket, and the address that it is connected to.
    """
    context = None if files is None else tls_context(files)
    places = [(address, _place(spelt)) for address in addresses for spelt in loopbacks(address)]
    errors: list[str] = []
    for address, place in places:
        connection: socket.socket | None = None
        try:
            if isinstance(place, str):
                connection = socket.socket(socket.AF_UNIX)
                connection.settimeout(timeout)
                connection.connect(place)
            else:
                host, port = place
                # As bytes, for which no table of Unicode is loaded.
                name: Any = host.encode() if host.isascii() else host
                connection = socket.create_connection((name, port), timeout)
            return (connection if context is None else context.wrap_socket(connection)), address
        except OSError as error:
            errors.append(
                f"no answer for {timeout:g} s" if isinstance(error, TimeoutError) else reason_of(error, files)
            )
            if connection is not None:
                connection.close()
    raise NoServers(f"cannot connect to {', '.join(addresses)}: {errors[0]}")


def _place(address: str) -> str | tuple[str, int]:
    kind, _, path = address.partition(":")
    return path if kind == "unix" and path else split_host_port(address, DEFAULT_PORT)


def tls_context(files: TlsFiles) -> SSLContext:
    """Return how to connect with TLS.

    Raises:
        ConfigError: a file cannot be used.
    """
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # As libgearman: what counts is who has signed the certificate.
    context.check_hostname = False
    kinds = (("CA certificates", files.ca_file), ("certificate", files.certificate), ("key", files.key))
    try:
        for what, path in kinds:
            if path is not None:
                _check_readable(what, path)
        with _explained("CA certificates", files.ca_file):
            context.load_verify_locations(files.ca_file)
        if files.certificate is not None:
            with _explained("certificate and key", f"{files.certificate}, {files.key}"):
                # OpenSSL would ask for a passphrase on the terminal.
                context.load_cert_chain(files.certificate, files.key, password=_no_passphrase)
    except ConfigError as error:
        raise name_another(error) from error
    return context


def _check_readable(what: str, path: str) -> None:
    try:
        with open(path, "rb"):  # noqa: PTH123 - commands pay for what is loaded
            pass
    except OSError as error:
        raise ConfigError(f"the TLS {what} {path} cannot be read: {error.strerror}") from error


@contextmanager
def _explained(what: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # includes ssl.SSLError
        raise ConfigError(f"the TLS {what} {path} cannot be used: {reason_of(error)}") from error


def _no_passphrase() -> str:
    raise ConfigError("the TLS key is encrypted; give one without a passphrase")


def reason_of(error: OSError, files: TlsFiles | None = None, *, is_connected: bool = False) -> str:
    """Say for people what went wrong with a connection.

    Args:
        error: of the socket, or of TLS.
        files: those of TLS that it was connected with.
        is_connected: whether there was a connection already.
    """
    verdict = getattr(error, "verify_code", None)
    if verdict is not None and files is not None:
        if verdict in _VERDICTS:
            return f"its TLS certificate, or one behind it, {_VERDICTS[verdict]}"
        return f"{files.ca_file} does not vouch for its TLS certificate"
    reason: str | None = getattr(error, "reason", None)
    if reason is not None:  # of OpenSSL
        text = reason.lower().replace("_", " ")
        # With TLS 1.2, the alert for a certificate that is missing is one for anything.
        has_none = files is not None and files.certificate is None and "alert handshake failure" in text
        if "certificate required" in text or has_none:
            asks = "may ask" if has_none else "asks"
            return f"{text}: the server {asks} for a certificate; {_NAME_ONE}"
        if _IS_REFUSED.search(text):
            return f"{text}: the server does not take this certificate; {_NAME_ONE}"
        return text if is_connected else f"it does not speak TLS, or not as we do: {text}"
    return error.strerror or str(error)
