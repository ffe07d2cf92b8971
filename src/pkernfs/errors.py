# SPDX-License-Identifier: GPL-2.0-only
"""The errors that a user sees: what failed, and what to do about it."""

#: Exit status of a command that was done in part: some guest is as it should be, another is not.
PARTLY = 3


class PkernfsError(Exception):
    """An expected failure, shown without a traceback.

    :param what: what failed, one line, no full stop.
    :param hint: what the user can do about it, one line; may be empty.
    :param status: exit status of the command: 1, 2 for wrong usage, or :data:`PARTLY`.
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


class PartlyError(PkernfsError):
    """Given up, and not everything could be brought back to what it was before (exit status 3)."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what, hint, status=PARTLY)
