r"""Names of trials and titles stay text in every format: no HTML, no \input, no formula."""

import csv
import io
import json

import pytest

from mbv3_jax.report import tables

NAMES = {
    "html": "<img src=x onerror=alert(1)>",
    "entity": "&lt;b&gt;",
    "link": "[x](javascript:alert(1)) ![y](http://z)",
    "code": "`a` *b* \\",
    "cell": "a | b",
    "lines": "a\n\\input{/etc/passwd}\r\n# b",
    "escape": "\x1b]0;x\x07 \x9b31m \u202e",
    "surrogate": "a\udcff",
}
FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "@SUM(A1)", " =1+1", "\t=1+1"]


def rows(name):
    row: dict = {column.key: None for column in tables.COLUMNS}
    row |= {"trial": name, "runs": 1, "missing": name, "top1_std": None}
    return [row | {"top1_values": [], "published_source": None}]


def write(name, form):
    return tables.write([(name, rows(name))], form)


def lines_of(text):
    assert all(line.isprintable() for line in text.split("\n"))
    return text.split("\n")


@pytest.mark.parametrize("kind", NAMES)
def test_markdown(kind):
    name = NAMES[kind]
    text = write(name, "md") + tables.plain([{"what": name, "of A": ""}], "md")
    lines = lines_of(text)
    assert len(lines) == 13
    assert "<img" not in text and "&lt;b" not in text.replace("&amp;lt;", "")
    for line in lines:
        bare = line.replace("\\\\", "").replace("\\|", "").replace("\\[", "").replace("\\`", "")
        assert "[" not in bare and "`" not in bare
    if kind == "cell":
        assert r"| a \| b | 1 |" in text
    if kind == "code":
        assert "\\`a\\` \\*b\\* \\\\" in text


@pytest.mark.parametrize("kind", NAMES)
def test_latex(kind):
    text = write(NAMES[kind], "latex") + tables.plain([{"what": NAMES[kind]}], "latex")
    lines = lines_of(text)
    assert lines[0].startswith("% ") and lines[1].startswith(r"\begin{tabular}")
    assert r"\input" not in "\n".join(lines[1:])


@pytest.mark.parametrize("name", [*FORMULAS, *NAMES.values()])
def test_csv(name):
    for text in (write(name, "csv"), tables.plain([{"what": name, "of A": name}], "csv")):
        lines_of(text)
        cells = [cell for line in csv.reader(io.StringIO(text)) for cell in line]
        assert not any(cell.lstrip()[:1] in set("=+-@") for cell in cells if cell)
        if name == "=1+1":
            assert "'=1+1" in cells


@pytest.mark.parametrize("text", ["-1.5", "+3", "-1e5", "+1,234 (+5.0%)", "-0.300 to +0.400"])
def test_numbers_stay_numbers_in_csv(text):
    made = tables.plain([{"a": text}], "csv")
    assert list(csv.reader(io.StringIO(made))) == [["a"], [text]]


def test_json_keeps_names_as_they_are():
    for name in NAMES.values():
        assert json.loads(write(name, "json"))[0]["trials"][0]["trial"] == name
        lines_of(write(name, "json"))
