"""The errors of a run, by who has to act. Each message is one line."""

# "Saved; start me again": sysexits.h's EX_TEMPFAIL. See docs/many_machines.md.
EXIT_RESTART = 75
EXIT_INTERRUPTED = 130  # as shells report Ctrl-C


class UsageError(Exception):
    """The command or its configuration is wrong; nothing was started or changed."""

    exit_code = 2


class InUse(UsageError):
    """Another command holds the folder."""


class RunError(Exception):
    """The run cannot continue; what it had saved is intact."""

    exit_code = 1


class Preempted(Exception):
    """The run was preempted and has saved its state; the same command resumes it."""

    exit_code = EXIT_RESTART


def printable(text: str) -> str:
    """Returns a text as one line, with escapes in place of characters that are not visible.

    Names of files and classes may hold line ends, terminal escapes, marks that change the direction
    of writing, and bytes that are not UTF-8.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable_lines(text: str) -> str:
    """Returns a text whose lines are `printable`."""
    return "\n".join(map(printable, text.split("\n")))


def counted(count: int, noun: str) -> str:
    """Returns a number and what it counts: "1 image", "2,000 images", "3 classes"."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def plain(value: float, digits: int = 4) -> str:
    """Returns a number with `digits` digits, but large ones with all of theirs: "1,000,000".

    `format(value, ".4g")` writes 1e+06 for it.
    """
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def first_line(e: BaseException) -> str:
    """The first line of an exception's message, shortened, for a message of one line."""
    text = str(e).strip()
    line = text.splitlines()[0] if text else type(e).__name__
    # TensorStore begins with the layers that it went through and ends with the reason.
    return line if len(line) <= 300 else f"{line[:100]} ... {line[-200:]}"
