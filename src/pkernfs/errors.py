# SPDX-License-Identifier: GPL-2.0-only
"""The errors that a user sees: what failed, and what to do about it."""


class PkernfsError(Exception):
    """An expected failure, shown without a traceback.

    :param what: what failed, one line, no full stop.
    :param hint: what the user can do about it, one line; may be empty.
    :param status: exit status of the command (1, or 2 for wrong usage).
    """

    def __init__(self, what: str, hint: str = "", *, status: int = 1) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.status = status


class UsageError(PkernfsError):
    """The command line asks for something that can't be meant (exit status 2)."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what, hint, status=2)
