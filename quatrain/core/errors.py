"""The few exceptions that a user meets.

A message names the thing, its value, what is allowed and what to do. Every problem of an input is
collected and shown at once; a traceback is for bugs only (`quatrain --debug`).
"""

from __future__ import annotations

from collections.abc import Iterable


class QuatrainError(Exception):
    """Something that went wrong in a way the user should read about, without a traceback.

    `exit_code` is what the command line returns: 1 for work that failed.
    """

    exit_code = 1

    def __init__(self, message: str, problems: Iterable[str] = ()):
        self.message = message
        self.problems = list(problems)
        super().__init__("\n".join([message, *(f"  - {problem}" for problem in self.problems)]))


class InputError(QuatrainError):
    """The user's input is wrong: a recipe, a file, a database, a flag. Exit code 2."""

    exit_code = 2


class OfflineError(QuatrainError):
    """Something is needed from the network, and the network is forbidden or cannot be reached."""


class InterruptedRun(QuatrainError):
    """The user stopped the work (Ctrl-C or SIGTERM); what was made so far is on disk."""

    exit_code = 130
