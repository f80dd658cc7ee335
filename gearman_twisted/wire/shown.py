"""What peers sent, as text for logs and terminals: it must neither make lines nor steer a terminal."""

from __future__ import annotations

import re

# C0, DEL and C1 (U+0085 ends a line), the separators of lines and paragraphs, and what turns the direction.
_IN_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_IN_LINES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# The same in a reply, in UTF-8, whose lines end with LF or CR LF and whose cells end with a tab.
_IN_REPLY = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae]|\xe2\x81[\xa6-\xa9]"
)


def shown(text: bytes | str) -> str:
    """Return a text for one line; each control character becomes ``?``."""
    return _IN_A_LINE.sub("?", text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


def shown_lines(text: bytes | str) -> str:
    """Return a text that may have several lines, such as a traceback; tabs stay too."""
    return _IN_LINES.sub("?", text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


def shown_reply(reply: bytes) -> bytes:
    """Return a reply of the text protocol for a terminal; all but control characters is unchanged."""
    return _IN_REPLY.sub(b"?", reply)
