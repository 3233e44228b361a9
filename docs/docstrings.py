"""Docstrings as the code writes them (plain text, Google sections) -> what Sphinx can parse.

The docstrings are for people who read the code: `name` in single backticks, formulas and lists
indented, no markup. reStructuredText takes asterisks, bars and indentation for markup, so they are
escaped here, in one place, rather than in every module.
"""

import re

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Note|Example):$")
_FIELDS = (":returns:", ":yields:")
_LITERAL = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def process(app, what, name, obj, options, lines: list[str]) -> None:
    """A handler of `autodoc-process-docstring`; it must run before napoleon's."""
    lines[:] = _blocks(_escaped("\n".join(lines)).split("\n"))


def _escaped(text: str) -> str:
    """The text with ``literals``, and without what would be taken for markup outside of them."""
    parts, end = [], 0
    for match in _LITERAL.finditer(text):
        parts.append(_plain(text[end : match.start()]))
        # A literal that begins or ends inside a word needs a separator.
        before = "\\ " if match.start() and text[match.start() - 1].isalnum() else ""
        after = "\\ " if text[match.end() : match.end() + 1].isalnum() else ""
        parts.append(f"{before}``{' '.join(match[1].split())}``{after}")
        end = match.end()
    parts.append(_plain(text[end:]))
    return "".join(parts)


def _plain(text: str) -> str:
    text = re.sub(r"([*|])", r"\\\1", text)
    return re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", text)


def _blocks(lines: list[str]) -> list[str]:
    """Indented lines that belong to no section, and tables in columns, as literal blocks."""
    out, in_section, in_block, columns = [], False, False, _in_columns(lines)
    for i, line in enumerate(_fields(_joined(lines))):
        indented = line.startswith(" ")
        if not line.strip():
            out.append(line)
            in_block = in_block and i + 1 < len(lines) and lines[i + 1].startswith(" ")
            continue
        if not indented and i not in columns:
            in_section, in_block = bool(_SECTION.match(line)) or line in _FIELDS, False
        elif not in_section and not in_block:
            out += ["", "::", ""]
            in_block = True
        if in_block:
            line = "  " + line.replace("``", "`").replace("\\", "")
        elif out and out[-1].startswith(" ") and not indented:
            out.append("")
        out.append(line)
    return out


def _in_columns(lines: list[str]) -> set[int]:
    """The lines of paragraphs that are laid out in columns: names, spaces, descriptions."""
    found, paragraph = set(), []
    for i, line in enumerate([*lines, ""]):
        if line.strip():
            paragraph.append(i)
            continue
        if paragraph and not lines[paragraph[0]].startswith(" "):
            aligned = [k for k in paragraph if re.search(r"\S {2,}\S", lines[k])]
            if 2 * len(aligned) > len(paragraph):
                found.update(paragraph)
        paragraph = []
    return found


def _joined(lines: list[str]) -> list[str]:
    """Names of arguments that go over two lines, on the first of them."""
    out = list(lines)
    for i in range(len(out) - 1):
        names = re.fullmatch(r"  ((?:\w+, )*\w+),", out[i])
        rest = re.fullmatch(r"    ((?:\w+, )*\w+): (.+)", out[i + 1])
        if names and rest:
            out[i] = f"  {names[1]}, {rest[1]}:"
            out[i + 1] = f"    {rest[2]}"
    return out


def _fields(lines: list[str]) -> list[str]:
    """Returns and Yields as fields; napoleon would take what stands before a colon for a type."""
    out = list(lines)
    for i, line in enumerate(lines[:-1]):
        if line in ("Returns:", "Yields:") and lines[i + 1].startswith("  "):
            out[i] = f":{line.lower()}"
            for k in range(i + 1, len(lines)):
                if lines[k].strip() and not lines[k].startswith(" "):
                    break
                out[k] = f"  {lines[k]}" if lines[k].strip() else ""
    return out
