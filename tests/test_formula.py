"""What a spreadsheet would run gets an apostrophe, and each text comes back as it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdrd.formula import guarded, unguarded


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=9", "'=9"),
        ("@bob", "'@bob"),
        ("+1-2", "'+1-2"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r'=1"),
        ("two\r\nlines", "two\r\nlines"),
        ("x;=1+1;", "x;'=1+1;"),
        ("x;'=1;y", "x;''=1;y"),
        ("x;+49", "x;+49"),
        ("+49;x", "'+49;x"),
        ("'=9", "''=9"),
        ("'bob", "'bob"),
        ("'-1", "'-1"),
        ("+4930123", "+4930123"),
        ("+49 30 1234", "+49 30 1234"),
        ("-1.5", "-1.5"),
        ("-1.5\n", "'-1.5\n"),
        ("", ""),
    ],
)
def test_what_would_be_run_gets_an_apostrophe_and_loses_it_again(text: str, cell: str) -> None:
    assert guarded(text) == cell
    assert unguarded(cell) == text


@given(st.one_of(st.text(), st.text("'=+-@;\t\r\n 01.a")))
def test_every_text_comes_back_as_it_was(text: str) -> None:
    assert unguarded(guarded(text)) == text
