"""What can go wrong in a run, by who has to act. Messages are one line for a person."""


class UsageError(Exception):
    """The command or its configuration is wrong; nothing was started or changed."""

    exit_code = 2


class RunError(Exception):
    """The run could not go on; what it had saved is intact."""

    exit_code = 1
