"""The command line: one file per verb, each thin over the API.

Heavy libraries are imported only when a verb needs them, so that `quatrain --help` answers at once. Exit codes:
0 done, 1 failed, 2 the user's input is wrong, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

from quatrain.cli.output import show_error
from quatrain.core.errors import QuatrainError

DEBUG_FLAG = "--debug"

_WRONG_PATHS = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO,
}  # fmt: skip
"""Errors of a path from the user (exit code 2); all others, such as a full disk, are failed work (exit code 1)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. The default `arguments` are those of the process.

    The exit code is the same with `--debug`, which adds the traceback of an error.
    """
    from quatrain.cli.process import prepare, safe_streams

    if arguments is None:
        prepare()
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = words[: words.index("--")] if "--" in words else words
    debug = DEBUG_FLAG in options
    if debug:
        words.remove(DEBUG_FLAG)
    with safe_streams():
        if debug:
            _show_own_log()
        try:
            code = _dispatch(words)
            sys.stdout.flush()
            return code
        except (Exception, KeyboardInterrupt) as error:
            return _failed(error, debug=debug)


def _failed(error: BaseException, *, debug: bool) -> int:
    """Print an error and return its exit code."""
    from quatrain.cli.process import OutputError, silence_standard_output

    if debug and not _is_of_usage(error):
        import traceback

        show_error("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, BrokenPipeError | OutputError):
        silence_standard_output()
    if isinstance(error, BrokenPipeError):
        return 1  # the reader has closed the pipe (`quatrain ... | head`), which is not an error
    if isinstance(error, QuatrainError):
        show_error(str(error), "error: ")
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        show_error("stopped")
        return 130
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _is_of_memory(str(error))):
        show_error("there is not enough memory for this; close other programs, or ask for less", "error: ")
        return 1
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        show_error("the home folder is not known; set HOME, and write paths without ~", "error: ")
        return 2
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        show_error(f"{error.filename}: {error.strerror}", "error: ")
        return 2 if error.errno in _WRONG_PATHS else 1
    show_error(
        f"{type(error).__name__}: {error}\nThis is a bug in quatrain, not a mistake of yours. Run the same "
        "command with --debug to see where it happened, and report it with that.",
        "internal error: ",
    )
    return 1


def _is_of_memory(text: str) -> bool:
    """Whether a message of torch reports that the system, or a GPU, is out of memory."""
    return "can't allocate memory" in text or "not enough memory" in text or "out of memory" in text


def _is_of_usage(error: BaseException) -> bool:
    """Whether the command line itself is wrong, such as a missing argument: a traceback would not help."""
    if not isinstance(error, QuatrainError) or error.exit_code != 2 or error.__traceback__ is None:
        return False
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__")).startswith(__name__)


def _show_own_log() -> None:
    """Send the package's debug log to stderr, including tracebacks of handled errors."""
    import logging

    logger = logging.getLogger("quatrain")
    logger.setLevel(logging.DEBUG)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())


def _dispatch(words: list[str]) -> int:
    from cyclopts import CycloptsError

    from quatrain.cli.app import build_app, check_words, load_listed
    from quatrain.cli.process import check_arguments, check_environment

    check_arguments(words)
    app = build_app()
    if not {"--help", "-h", "--version"} & set(words):
        check_environment()
    try:
        check_words(app, words)
        load_listed(app, words)
        result = app(words, print_error=False, exit_on_error=False, result_action="return_value")
    except CycloptsError as error:
        from quatrain.core.errors import InputError

        raise InputError(
            f"{error}\n`quatrain --help` lists the verbs, `quatrain VERB --help` the options of one."
        ) from error
    return result if isinstance(result, int) else 0
