"""The command line: one file per verb, each thin over the API.

Nothing heavy is imported before a verb needs it, so that `quatrain --help` answers at once. Exit codes:
0 done, 1 failed, 2 the user's input is wrong, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from quatrain.errors import QuatrainError

DEBUG_FLAG = "--debug"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = words[: words.index("--")] if "--" in words else words
    debug = DEBUG_FLAG in options
    if debug:
        words.remove(DEBUG_FLAG)
        _show_own_log()
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except QuatrainError as error:
        if debug:
            raise
        complain(str(error), "error: ")
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        complain("stopped")
        return 130
    except BrokenPipeError:
        _silence_standard_output()
        return 1
    except Exception as error:
        if debug:
            raise
        complain(
            f"{type(error).__name__}: {error}\nThis is a bug in quatrain, not a mistake of yours. Run the same "
            "command with --debug to see where it happened, and report it with that.",
            "internal error: ",
        )
        return 1


def _show_own_log() -> None:
    """What the package notes for those who look for a bug, the tracebacks of survived faults among it, to stderr."""
    import logging

    logger = logging.getLogger("quatrain")
    logger.setLevel(logging.DEBUG)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())


def complain(text: str, prefix: str = "") -> None:
    """Write a message to standard error as it is: nothing in it is read as markup."""
    from quatrain.wording import write_text

    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        write_text(sys.stderr, f"{prefix}{text}\n")
        sys.stderr.flush()


def _dispatch(words: list[str]) -> int:
    from cyclopts import CycloptsError

    from quatrain.cli.app import build_app

    app = build_app()
    try:
        result = app(words, print_error=False, exit_on_error=False, result_action="return_value")
    except CycloptsError as error:
        complain(f"{error}\n`quatrain --help` and `quatrain VERB --help` show what there is.", "error: ")
        return 2
    return result if isinstance(result, int) else 0


def _silence_standard_output() -> None:
    """The reader has gone away (`quatrain ... | head`): let nothing be flushed to it at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
