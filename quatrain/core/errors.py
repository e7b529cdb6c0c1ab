"""The exceptions that users see.

A message names the thing, its value, what is allowed and what to do. All problems of an input are collected and shown
at once; tracebacks are for bugs only (`quatrain --debug`).
"""

from __future__ import annotations

from collections.abc import Iterable


class QuatrainError(Exception):
    """An error that is shown to the user without a traceback.

    `exit_code` is the exit code of the command line: 1 for work that failed.
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
    """The network is needed but forbidden or unreachable."""


class InterruptedRun(QuatrainError):
    """The user stopped the work (Ctrl-C or SIGTERM); finished work is on disk."""

    exit_code = 130
