"""What peers sent cannot make lines of its own in a log, nor steer a terminal."""

from __future__ import annotations

import unicodedata

import pytest

from gearman_twisted.wire.shown import shown, shown_lines, shown_reply

EVIL = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, 0x202A, 0x202E, 0x2066, 0x2069]))


@pytest.mark.parametrize("character", EVIL)
def test_control_characters_become_question_marks(character: str) -> None:
    """Each control character is one, in text and in UTF-8; a text of several lines keeps LF and tab."""
    assert shown(f"a{character}b") == shown(f"a{character}b".encode()) == "a?b"
    kept = character in "\t\n"
    assert shown_lines(f"a{character}b") == (f"a{character}b" if kept else "a?b")
    kept = character in "\t\n\r"
    assert shown_reply(f"a{character}b".encode()) == (f"a{character}b".encode() if kept else b"a?b")


def test_nothing_ends_a_line() -> None:
    """No character of Unicode that Python, or a pager, takes for the end of a line is left."""
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x30000)]))
    for text in (shown(everything), shown(everything.encode())):
        assert len(text.splitlines()) == 1
        assert not [c for c in text if unicodedata.category(c) in {"Cc", "Zl", "Zp"}]


def test_other_text_is_unchanged() -> None:
    """Letters of all languages stay, and so do bytes of replies that are no UTF-8."""
    text = "réverse — 逆 🙂 \xa0"
    assert shown(text) == shown_lines(text) == shown(text.encode()) == text
    assert shown_reply(text.encode() + b"\xe9\x85") == text.encode() + b"\xe9\x85"
    assert shown(b"\xe9") == "\ufffd"
