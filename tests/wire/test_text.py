"""The text protocol's words and tables."""

from __future__ import annotations

from typing import Any

import pytest

from gearman_twisted.errors import RemoteProtocolError
from gearman_twisted.wire import text as admin


@pytest.mark.parametrize(
    ("line", "tokens"),
    [
        (b"status", [b"status"]),
        (b"status\r", [b"status"]),
        (b"status\r\r", [b"status\r"]),
        (b"cancel  job   H:1", [b"cancel", b"job", b"H:1"]),
        (b"", [b""]),
        (b"\r", [b""]),
        (b" status", [b"", b"status"]),
        (b"show jobs ", [b"show", b"jobs", b""]),
        (b"a\tb c", [b"a\tb", b"c"]),
    ],
)
def test_command_is_split_at_blanks(line: bytes, tokens: list[bytes]) -> None:
    """Blanks separate tokens, one or more; those at the ends leave an empty token, a last CR is dropped."""
    assert admin.split_command(line) == tokens


def test_row_is_a_line() -> None:
    """A list has a line for each row, ending with LF."""
    assert admin.lines([(b"f", 1, 0, 2), (b"g", 0, 0, 0)]) == b"f\t1\t0\t2\ng\t0\t0\t0\n"


def test_no_rows() -> None:
    """A list without rows has no lines."""
    assert admin.lines([]) == b""


def test_separator_can_be_a_blank() -> None:
    """The list of workers has blanks between its cells."""
    assert admin.lines([(7, b"::1", b"-", b":")], b" ") == b"7 ::1 - :\n"


def test_control_characters_cannot_forge_rows() -> None:
    """A name with line ends, tabs or NULs stays in its cell."""
    assert admin.lines([(b"a\r\n.\n\tb\0\x7f\xff", 1)]) == b"a??.??b??\xff\t1\n"


def test_error_ends_with_crlf_and_value_with_lf() -> None:
    """Monitoring scripts compare these ends to the byte."""
    assert admin.error(b"UNKNOWN_JOB") == b"ERR UNKNOWN_JOB\r\n"
    assert admin.value(b"1.0") == b"OK 1.0\n"
    assert admin.OK == b"OK\r\n"


REPLIES = [
    (b"status", b"f\t1\t0\t2\n.\n"),
    (b"STATUS\r\n", b"f\t1\t0\t2\ng\t0\t0\t0\n.\n"),
    (b"status", b".\n"),
    (b"prioritystatus", b"f\t0\t1\t0\t1\n.\n"),
    (b"workers", b"3 ::1 - :\n4 ::1 id : f g\n.\n"),
    (b"show jobs", b"H:1\t0\t0\t1\n.\n"),
    (b"Show  Unique jobs", b"\n\nu\n.\n"),
    (b"show nothing", b"ERR UNKNOWN_SHOW_ARGUMENTS\r\n"),
    (b"show jobs more", b"ERR UNKNOWN_SHOW_ARGUMENTS\r\n"),
    (b"status", b"ERR SHUTDOWN\t0\n.\n"),
    (b"version", b"OK 1.1.20\n"),
    (b"getpid", b"OK 4711\n"),
    (b"cancel job H:1", b"OK\r\n"),
    (b"maxqueue f 10", b"OK\r\n"),
    (b"statuses", b"ERR UNKNOWN_COMMAND Unknown+server+commandstatuses\r\n"),
]


def read(command: bytes, received: bytes, **limits: int) -> tuple[bytes | None, bytes]:
    """Return the reply at the start of what was received, and what is left."""
    reader = admin.ReplyReader(**limits)
    reader.feed(received)
    return reader.take(command), bytes(reader.received)


@pytest.mark.parametrize(("command", "reply"), REPLIES)
def test_reply_is_cut_off(command: bytes, reply: bytes) -> None:
    """A reply is taken with its line ends, and what is behind it is left."""
    assert read(command, reply) == (reply, b"")
    assert read(command, reply + b"OK 2\n.\n") == (reply, b"OK 2\n.\n")


@pytest.mark.parametrize(("command", "reply"), REPLIES)
def test_reply_is_not_taken_too_early(command: bytes, reply: bytes) -> None:
    """Replies that come byte by byte are complete with their last bytes, and not before."""
    reader = admin.ReplyReader()
    for _ in range(2):
        for position in range(len(reply)):
            assert reader.take(command) is None
            reader.feed(reply[position : position + 1])
        assert reader.take(command) == reply


@pytest.mark.parametrize("command", [b"status", b"version"])
def test_endless_line_is_given_up(command: bytes) -> None:
    """A line that does not end is an error once it is longer than the limit, and so it is by default."""
    start = b"f\t1\t0\t2\n" if command == b"status" else b""
    assert read(command, start + b"x" * 100, max_line_bytes=100)[0] is None
    with pytest.raises(RemoteProtocolError, match="a line of more than 100 bytes"):
        read(command, start + b"x" * 101, max_line_bytes=100)
    with pytest.raises(RemoteProtocolError, match="a line of more than 16777216 bytes"):
        read(command, start + b"x" * (16 * 1024 * 1024 + 1))


def test_endless_list_is_given_up() -> None:
    """A list that does not end is an error once it is longer than the limit; a complete one never is."""
    lines = b"f\t1\t0\t2\n" * 20
    assert read(b"status", lines, max_bytes=160)[0] is None
    with pytest.raises(RemoteProtocolError, match="a reply of more than 159 bytes"):
        read(b"status", lines, max_bytes=159)
    assert read(b"status", lines + b".\n", max_bytes=159) == (lines + b".\n", b"")


class Counted(bytearray):
    """Bytes that count how many of them are searched."""

    searched = 0

    def find(self, sub: Any, start: Any = 0, *end: Any) -> int:
        self.searched += len(self) - start
        return super().find(sub, start, *end)

    def rfind(self, sub: Any, start: Any = 0, *end: Any) -> int:
        self.searched += len(self) - start
        return super().rfind(sub, start, *end)


@pytest.mark.parametrize("piece", [b"f\t1\t0\t2\n", b"x" * 9])
def test_long_reply_is_searched_once(piece: bytes) -> None:
    """What a list in many pieces costs grows with its length, whether the pieces end lines or not."""
    reader = admin.ReplyReader()
    reader.received = Counted()
    for _ in range(10_000):
        reader.feed(piece)
        assert reader.take(b"status") is None
    reader.feed(b"\n.\n")
    assert reader.take(b"status") == piece * 10_000 + b"\n.\n"
    assert reader.received.searched < 4 * 10_000 * len(piece)
