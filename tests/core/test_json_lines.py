"""A line that was cut short is left out in silence, any other damage is named."""

import pytest

from mbv3_jax.core.json_lines import append_line, parse_object, read_lines


@pytest.fixture
def read(tmp_path):
    """read(bytes) -> the values, and the notes without the path."""
    path = tmp_path / "lines.jsonl"

    def run(content: bytes) -> tuple[list, list[str]]:
        path.write_bytes(content)
        notes: list[str] = []
        return read_lines(path, parse_object, note=notes.append), [
            n.removeprefix(f"{path}: ") for n in notes
        ]

    return run


@pytest.mark.parametrize(
    ("end", "values"),
    [
        (b"", [{"a": 1}]),
        (b'{"b": "x', [{"a": 1}]),
        (b'{"b": "\xc3', [{"a": 1}]),  # in the middle of a character
        (b'{"b": 2}', [{"a": 1}, {"b": 2}]),  # only the newline is missing
    ],
)
def test_a_kill_can_cut_the_last_line(read, end, values):
    assert read(b'{"a": 1}\n' + end) == (values, [])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"b": "x', "not JSON (Unterminated string starting at: column 7)"),
        (
            b'{"b": "x{"c": 3}',
            "not JSON (Expecting ',' delimiter: column 11)",
        ),  # appended to half a line
        (b"", "not JSON (Expecting value: column 1)"),
        (b"5", "got 5, expected an object"),
        (b"\x00\x00", "not JSON (Expecting value: column 1)"),
        (b"\xff", "the byte 0xff is not UTF-8"),
        (b'{"b":' * 10**5, "it has over 100 levels of lists and objects in one another"),
    ],
    ids=range(7),
)
def test_any_other_line_is_named_and_what_follows_is_read(read, line, reason):
    values, (note,) = read(b'{"a": 1}\n' + line + b'\n{"d": 4}\n')
    assert values == [{"a": 1}, {"d": 4}]
    assert note.startswith(f"cannot read and leaves out line 2 ({reason}")


def test_many_damaged_lines_are_one_note(read):
    _, (note,) = read(b"no\n" * 200)
    assert note.endswith("line 3 (not JSON (Expecting value: column 1)) and 197 more")


def test_other_ends_of_lines_do_not_count(read):
    assert read('{"a": "\u2028\x85"}\n'.encode()) == ([{"a": "\u2028\x85"}], [])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ""),
        (b"", ""),
        (b'{"a": 1}\n', '{"a": 1}\n'),
        (b'{"a": 1}', '{"a": 1}\n'),  # only the newline is missing
        (b'{"a": 1}\n{"b": "\xc3', '{"a": 1}\n'),
        (b'{"a": 1}\nno\n{"b"', '{"a": 1}\nno\n'),  # what a reader names
        (b'{"b"', ""),
    ],
)
def test_a_line_begins_on_a_line_of_its_own(tmp_path, content, expected):
    path = tmp_path / "lines.jsonl"
    if content is not None:
        path.write_bytes(content)
    append_line(path, {"c": "\u2028\udcff"})
    assert path.read_text() == expected + '{"c": "\\u2028\\udcff"}\n'


def test_a_missing_file_has_no_lines(tmp_path):
    assert read_lines(tmp_path / "none", parse_object) == []


def test_notes_are_on_standard_error(tmp_path, capsys):
    (tmp_path / "x").write_text("no\n")
    read_lines(tmp_path / "x", parse_object)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(
        f"note: {tmp_path / 'x'}: cannot read and leaves out line 1"
    )
