"""Untrusted text as it is shown."""

import pytest

from harness.report.text import bounded, one_line, shown, visible


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, ä and 漢字", "plain, ä and 漢字"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[31m\x00\r\x9b", r"\x1b[31m\x00\r\x9b"),
        ("\udc80", r"\udc80"),
        ("\u202ereversed\u200b", r"\u202ereversed\u200b"),
        ("\ufffe\uffff\U000e0001", r"\ufffe\uffff\U000e0001"),
    ],
)
def test_invisible_characters_are_escaped(text: str, expected: str) -> None:
    assert visible(text) == expected


def test_visible_text_has_no_control_characters() -> None:
    every = visible("".join(map(chr, range(0x3000))))
    assert all(each.isprintable() or each in "\n\t" for each in every)


def test_long_text_keeps_beginning_and_end_and_counts_what_was_cut() -> None:
    text = "begin" + "x" * 1000 + "end"
    assert bounded(text, 12) == "beginxxx [... 996 characters left out ...] xend"
    assert bounded(text, 1008) == text


def test_text_is_truncated_before_it_is_escaped() -> None:
    assert shown("\x00" * 9, 6) == r"\x00\x00\x00\x00 [... 3 characters left out ...] \x00\x00"


def test_one_line_joins_lines() -> None:
    assert one_line(" a\n  b\x0b\tc\x00", 100) == r"a b c\x00"
