"""The rows of a CSV table, with the lines where they begin."""

import pytest

from mbv3_jax.core.csv_rows import not_utf8, read_rows


def test_rows_begin_where_they_begin():
    text = 'a, b \n\n , \n"two\nlines",c\nd,e\n'
    assert read_rows(text, "t.csv") == [
        (1, ["a", "b"]),
        (4, ["two\nlines", "c"]),
        (6, ["d", "e"]),
    ]
    assert read_rows("a;b,c", "t.csv", delimiter=";") == [(1, ["a", "b,c"])]
    assert read_rows("", "t.csv") == []


def test_what_is_no_row_is_named_with_its_first_line():
    with pytest.raises(ValueError, match=r"^t\.csv: line 3: not a row of a table: unexpected end"):
        read_rows('a,b\n\n"c\nd', "t.csv")


def test_the_line_of_bytes_that_are_not_text():
    with pytest.raises(UnicodeDecodeError) as caught:
        b"a\n\nb\xff\n".decode()
    assert not_utf8(caught.value, "t.csv") == "t.csv: line 3 is not text in UTF-8"
