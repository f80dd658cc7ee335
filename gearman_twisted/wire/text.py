"""The text protocol: commands and replies, for the server and for the admin client.

Replies end exactly like gearmand's, since monitoring scripts compare them: the lines of a list end with LF
and the list with a dot, replies to changes and errors end with CRLF, values with LF.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from gearman_twisted.errors import RemoteProtocolError
from gearman_twisted.wire.constants import MAX_REPLY_BYTES, MAX_REPLY_LINE_BYTES

MAX_TOKENS = 5

OK = b"OK\r\n"
END = b".\n"

_LISTS = (
    (b"status",),
    (b"prioritystatus",),
    (b"workers",),
    (b"show", b"jobs"),
    (b"show", b"unique"),
    (b"show", b"scheduled"),
)
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


def split_command(line: bytes) -> list[bytes]:
    """Return the tokens of a command, at least one.

    They are separated by one or more blanks, so a leading or trailing blank makes an empty token.

    Args:
        line: without its LF; a CR at the end is dropped.
    """
    return re.split(b" +", line[:-1] if line.endswith(b"\r") else line)


def error(text: bytes) -> bytes:
    """Return the reply to a command that failed."""
    return b"ERR %b\r\n" % text


def value(text: bytes) -> bytes:
    """Return the reply to a command that asks for one value."""
    return b"OK %b\n" % text


def rows(cells: Iterable[Iterable[bytes | int]], separator: bytes = b"\t") -> bytes:
    """Return the reply to a command that asks for a list; control characters in cells become ``?``."""
    lines = [separator.join(_cell(cell) for cell in row) + b"\n" for row in cells]
    lines.append(END)
    return b"".join(lines)


def _cell(cell: bytes | int) -> bytes:
    return b"%d" % cell if isinstance(cell, int) else _CONTROL.sub(b"?", cell)


def take_reply(
    command: bytes,
    received: bytes,
    *,
    max_line_bytes: int = MAX_REPLY_LINE_BYTES,
    max_bytes: int = MAX_REPLY_BYTES,
) -> tuple[bytes, bytes] | None:
    """Cut the reply to a command off what was received.

    Args:
        command: the command that was sent.
        received: all that came since, from the reply's first byte.
        max_line_bytes: the longest line to wait for.
        max_bytes: the longest reply to wait for.

    Returns:
        The reply with its line ends, and what came behind it; None while it is not complete.

    Raises:
        RemoteProtocolError: the reply exceeds a limit; close the connection.
    """
    taken = _cut_reply(command, received)
    if taken is None and len(received) - received.rfind(b"\n") > max_line_bytes:
        raise RemoteProtocolError(f"the server sent a line of more than {max_line_bytes} bytes")
    if taken is None and len(received) > max_bytes:
        raise RemoteProtocolError(f"the server sent a reply of more than {max_bytes} bytes")
    return taken


def _cut_reply(command: bytes, received: bytes) -> tuple[bytes, bytes] | None:
    first = received.find(b"\n") + 1
    if not first:
        return None
    tokens = tuple(token.lower() for token in split_command(command.rstrip(b"\r\n")))
    is_error = received.startswith(b"ERR ") and received[:first].endswith(b"\r\n")
    if is_error or not any(tokens[: len(known)] == known for known in _LISTS):
        return received[:first], received[first:]
    if received.startswith(END):
        return END, received[len(END) :]
    end = received.find(b"\n" + END)
    if end < 0:
        return None
    end += 1 + len(END)
    return received[:end], received[end:]
