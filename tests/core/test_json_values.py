"""JSON is read with the types that are expected, and what does not fit is one line."""

import dataclasses
import json
from typing import NotRequired, TypedDict

import pytest

from mbv3_jax.core.errors import RunError, UsageError
from mbv3_jax.core.json_values import Number, as_type, parse_json, read_json


class Network(TypedDict):
    point: list[int]
    cost: Number
    note: NotRequired[str | None]


class Found(TypedDict):
    found: dict[str, Network]


@dataclasses.dataclass(frozen=True)
class Layer:
    kernel: int
    rates: tuple[float, ...] = ()
    name: str = ""

    def __post_init__(self):
        if self.kernel < 1:
            raise ValueError(f"kernel: got {self.kernel}, expected at least 1")


def found(**fields):
    return json.dumps({"found": {"small": {"point": [1], "cost": 1, **fields}}})


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"a": 1}', dict),
        ('{"a": 1}', dict[str, int]),
        ('["a"]', list[str]),
        ("[[1]]", list),
        ("[1, 2.5, NaN]", list[Number]),
        ("5", object),
        ("null", int | None),
        ('["a", {}]', list[str | dict]),
        (found(note=None), Found),
        (found(cost=2.5, note="\U0001f600", later={"a": [1]}), Found),
    ],
)
def test_what_is_expected(tmp_path, text, kind):
    path = tmp_path / "f.json"
    for start in ("", "\ufeff"):  # editors on Windows write the mark
        path.write_text(start + text, "utf-8")
        assert repr(read_json(path, kind)) == repr(json.loads(text))


def test_types_are_those_that_were_asked_for():
    assert repr(parse_json("[1, 2]", list[float])) == "[1.0, 2.0]"
    assert repr(parse_json("[1, 2]", list[Number])) == "[1, 2]"
    assert parse_json("[[1, 2], 3]", tuple[tuple[int, ...], float]) == ((1, 2), 3.0)
    layer = parse_json('[{"kernel": 3, "rates": [1]}]', list[Layer])[0]
    assert layer == Layer(3, (1.0,))


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("{", dict, r"not JSON \(Expecting property name .*: column 2\)"),
        ("", dict, r"not JSON \(Expecting value: column 1\)"),
        ('{\n "a": 1,\n', dict, r"not JSON \(Expecting property name .*: line 3 column 1\)"),
        ("[]", dict, r"got \[\], expected an object"),
        ("5", Found, "got 5, expected an object"),
        ("[1]", list[str], r"\[0\]: got 1, expected a string"),
        ('{"a": "b"}', dict[str, int], "a: got 'b', expected a whole number"),
        ("true", int, "got True, expected a whole number"),
        ("1.0", int, "got 1.0, expected a whole number"),
        ("null", float, "got None, expected a number"),
        ('"x"', int | None, "got 'x', expected a whole number or null"),
        ("[]", Number | None, r"got \[\], expected a number or null"),
        ("[1, 2, 3]", tuple[int, int], r"got \[1, 2, 3\], expected a list of 2"),
        ("{}", Found, "found: missing, expected an object"),
        (found(point=[1, "a"]), Found, r"found\.small\.point\[1\]: got 'a', expected a whole num"),
        (found(note=5), Found, r"found\.small\.note: got 5, expected a string or null"),
        ('{"found": {"small": []}}', Found, r"found\.small: got \[\], expected an object"),
        ('[{"kernel": 0}]', list[Layer], r"\[0\]\.kernel: got 0, expected at least 1"),
        ('{"kernel": 3, "x": 1}', Layer, r"unknown fields \['x'\], missing fields \[\]; the fie"),
        ("{}", Layer, r"unknown fields \[\], missing fields \['kernel'\]; the fields are kernel, "),
        # What no program of this package writes, wherever it stands.
        ("[" * 10**5, list, "over 100 levels"),
        (found(later=json.loads("[" * 200 + "]" * 200)), Found, r"later\[0\]\[0\].*over 100 lev"),
        (f"[1{'0' * 400}]", list[float], r"\[0\]: got 10*\.\.\., expected a number of at most 63"),
        (f"[1{'0' * 400}]", list, "expected a number of at most 63 bits"),
        ("1" * 5000, int, "it has a number of thousands of digits"),
        (r'{"a": "\ud800"}', dict, r"a: got '\\ud800', which has half a character in it"),
        (r'{"\ud800": 1}', dict, r"\\ud800: got '\\ud800', which has half a character in it"),
        (b'{\n"a": "\xff"}', dict, "the byte 0xff in line 2 is not UTF-8"),
        (b"\xfe", dict, "the byte 0xfe is not UTF-8"),
        (None, dict, "No such file or directory"),
    ],
)
def test_a_damaged_file_is_named_with_the_reason(tmp_path, text, kind, reason):
    path = tmp_path / "f.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunError, match=f"^{path} is damaged: .*{reason}") as caught:
        read_json(path, kind)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message) < 500 + len(str(path))
    message.encode()  # no surrogate is left that a terminal cannot show
    with pytest.raises(UsageError, match=r"; remove it$"):
        read_json(path, kind, error=UsageError, advice="remove it")


def test_names_of_files_may_have_bytes_that_are_no_characters():
    assert parse_json(r'{"command": "a\udcff"}', dict) == {"command": "a\udcff"}


def test_values_have_a_name():
    with pytest.raises(ValueError, match=r"^row 3, spec\.kernel: got 'x', expected a whole number"):
        as_type({"kernel": "x"}, Layer, "row 3, spec")
    with pytest.raises(ValueError, match=r"^spec: not JSON \("):
        parse_json("", Layer, "spec")
