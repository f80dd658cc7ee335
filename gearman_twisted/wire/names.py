"""Check the names that clients and workers send: functions, uniques and client ids."""

from __future__ import annotations

from gearman_twisted.errors import LocalProtocolError
from gearman_twisted.wire.codec import encode
from gearman_twisted.wire.constants import (
    MAX_ARGUMENT_BYTES,
    MAX_CLIENT_ID_BYTES,
    MAX_UNIQUE_BYTES,
    REQ,
    PacketType,
)


def text_or_bytes(value: object, name: str) -> bytes:
    """Return text as UTF-8, or bytes unchanged.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, bytes):
        raise TypeError(f"{name} takes text or bytes, not {type(value).__name__}")
    return value


def only_bytes(value: object, name: str) -> bytes:
    """Return bytes unchanged.

    Raises:
        TypeError: the value is something else.
    """
    if not isinstance(value, bytes):
        hint = "; encode it first" if isinstance(value, str) else ""
        raise TypeError(f"{name} takes bytes, not {type(value).__name__}{hint}")
    return value


def check_function(function: bytes) -> bytes:
    """Return a function's name if it can be sent.

    Raises:
        LocalProtocolError: it is empty, contains a NUL, or is longer than 8191 bytes.
    """
    if not function or b"\0" in function or len(function) > MAX_ARGUMENT_BYTES:
        raise LocalProtocolError(
            f"a function's name is 1 to {MAX_ARGUMENT_BYTES} bytes without NUL, not {function!r:.200}"
        )
    return function


def check_unique(unique: bytes) -> None:
    """Check that a unique can be sent: at most 64 bytes without NUL.

    Raises:
        LocalProtocolError: it cannot.
    """
    if len(unique) > MAX_UNIQUE_BYTES or b"\0" in unique:
        raise LocalProtocolError(
            f"a unique is at most {MAX_UNIQUE_BYTES} bytes without NUL, not {unique!r:.200}"
        )


def check_client_id(client_id: bytes) -> bytes:
    """Return a client id if it can be sent.

    Raises:
        LocalProtocolError: it is empty, too long, or would break the columns of the command ``workers``.
    """
    is_printable = all(0x20 < byte < 0x7F for byte in client_id)
    if not 1 <= len(client_id) <= MAX_CLIENT_ID_BYTES or not is_printable:
        raise LocalProtocolError(
            f"a client id is 1 to {MAX_CLIENT_ID_BYTES} printable ASCII characters without blanks, "
            f"not {client_id!r:.200}"
        )
    return client_id


def client_id_packet(client_id: bytes) -> bytes:
    """Return the packet that names this connection in the server's command ``workers``; it has no reply.

    Raises:
        LocalProtocolError: see ``check_client_id``.
    """
    return encode(REQ, PacketType.SET_CLIENT_ID, check_client_id(client_id))
