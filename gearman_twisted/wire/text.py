"""The text protocol: commands and replies, for the server and for the admin client.

Replies end exactly like gearmand's, since monitoring scripts compare them: the lines of a list end with LF
and the list with a dot, replies to changes and errors end with CRLF, values with LF.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from gearman_twisted.errors import LocalProtocolError, RemoteProtocolError
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
# What servers read of a number: 18 digits.
_LARGEST_LIMIT = 10**18 - 1
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


def is_unknown(reply: bytes) -> bool:
    """Return whether a reply says that the server does not know the command."""
    # gearmand answers with the last of them to "cancel" with a word that it does not know.
    codes = (b"UNKNOWN_COMMAND", b"UNKNOWN_SHOW_ARGUMENTS", b"UNKNOWN_ERROR")
    return reply.startswith(b"ERR ") and reply[4:].split()[:1] in [[code] for code in codes]


def reason(text: str) -> bytes:
    """Return a text as errors have it after their code: one line, with ``+`` for blanks."""
    return b"+".join(_CONTROL.sub(b" ", text.encode(errors="replace")).split())


def value(text: bytes) -> bytes:
    """Return the reply to a command that asks for one value."""
    return b"OK %b\n" % text


def lines(rows: Iterable[Iterable[bytes | int]], separator: bytes = b"\t") -> bytes:
    """Return rows of a list as a command shows them; control characters in cells become ``?``."""
    return b"".join([separator.join(_cell(cell) for cell in row) + b"\n" for row in rows])


def _cell(cell: bytes | int) -> bytes:
    return b"%d" % cell if isinstance(cell, int) else _CONTROL.sub(b"?", cell)


def check_limits(limits: Sequence[object]) -> None:
    """Check the numbers of ``maxqueue``: servers take whatever is no number for "no limit".

    Raises:
        LocalProtocolError: they make no sense.
    """
    if len(limits) not in {0, 1, 3}:
        raise LocalProtocolError(
            "a queue takes one limit for all priorities, or three for high, normal and low, or none, "
            f"not {len(limits)}"
        )
    for limit in limits:
        if not isinstance(limit, int) or isinstance(limit, bool) or not 0 <= limit <= _LARGEST_LIMIT:
            raise LocalProtocolError(
                f"the limit of a queue is a whole number, or 0 for no limit, not {limit!r:.100}"
            )


def check_done(command: bytes, reply: bytes) -> None:
    """Check that a reply to a command that changes something, or to ``ready``, says that it was done.

    Raises:
        RemoteProtocolError: it says something else, as no job server does.
    """
    if not reply.startswith(b"OK"):
        raise RemoteProtocolError(f"the reply to {command!r:.200} is neither OK nor ERR: {reply!r:.200}")


class ReplyReader:
    """Cuts what a server sends into the replies to commands; searches each byte once.

    Args:
        max_line_bytes: the longest line to wait for.
        max_bytes: the longest reply to wait for.

    Attributes:
        received: what has come and is not taken yet, from the first byte of a reply.
    """

    __slots__ = ("_first_end", "_line", "_max_bytes", "_max_line_bytes", "_searched", "received")

    def __init__(
        self, *, max_line_bytes: int = MAX_REPLY_LINE_BYTES, max_bytes: int = MAX_REPLY_BYTES
    ) -> None:
        self.received = bytearray()
        self._max_line_bytes = max_line_bytes
        self._max_bytes = max_bytes
        # Of the reply: the end of its first line, or 0; the start of its last line; how much was searched.
        self._first_end = self._line = self._searched = 0

    def feed(self, data: bytes) -> None:
        """Add what was read."""
        self.received += data

    def take(self, command: bytes) -> bytes | None:
        """Cut off the reply to a command.

        Args:
            command: the command that was sent, the same one until its reply is complete.

        Returns:
            The reply with its line ends; None while it is not complete.

        Raises:
            RemoteProtocolError: the reply exceeds a limit; close the connection.
        """
        received = self.received
        self._first_end = self._first_end or received.find(b"\n", self._searched) + 1
        end = self._end(command) if self._first_end else 0
        if end:
            reply = bytes(received[:end])
            # Does not move what is behind it.
            del received[:end]
            self._first_end = self._line = self._searched = 0
            return reply
        self._line = received.rfind(b"\n", self._searched) + 1 or self._line
        self._searched = len(received)
        if len(received) - self._line > self._max_line_bytes:
            raise RemoteProtocolError(f"the server sent a line of more than {self._max_line_bytes} bytes")
        if len(received) > self._max_bytes:
            raise RemoteProtocolError(f"the server sent a reply of more than {self._max_bytes} bytes")
        return None

    def _end(self, command: bytes) -> int:
        """Return where a reply with a whole first line ends; 0 if that is not known yet."""
        received, first_end = self.received, self._first_end
        tokens = tuple(token.lower() for token in split_command(command.rstrip(b"\r\n")))
        is_error = received.startswith(b"ERR ") and received.endswith(b"\r\n", 0, first_end)
        if is_error or not any(tokens[: len(known)] == known for known in _LISTS):
            return first_end
        if received.startswith(END):
            return len(END)
        # Its first bytes may have come before.
        end = received.find(b"\n" + END, max(0, self._searched - len(END)))
        return 0 if end < 0 else end + 1 + len(END)
