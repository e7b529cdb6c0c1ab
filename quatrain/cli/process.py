"""Handles the process of the command line: closed or full streams, arguments, environment variables.

`prepare` runs first in a process, `safe_streams` around each command. A broken stream raises an error with an exit code
when it is used; invalid variables are reported before the verb starts.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.processes import RANGES, environment_number
from quatrain.core.reading import decode
from quatrain.core.wording import format_value

MAX_INPUT_BYTES = 64 * 1024 * 1024
"""Limit on the bytes of standard input, and of one line of it."""

MAX_COLUMNS = 10_000
"""Limit on the terminal width; a larger one counts as unknown."""

MAX_THREADS = 4096
"""Limit on thread counts; OpenMP aborts the process if the system cannot start a thread."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class OutputError(QuatrainError):
    """Standard output cannot be written. Exit code 1."""


def prepare() -> None:
    """Prepare the process; restarts the interpreter in UTF-8 mode if file names would be ASCII."""
    _use_utf8()
    if any(action == "error" for action, *_ in warnings.filters):
        # PYTHONWARNINGS=error is meant for tests; a library's warning must not end a working program.
        warnings.simplefilter("default")


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Make the standard streams safe to write, even if they are closed or broken."""
    for name in ("COLUMNS", "LINES"):
        if not _is_number(os.environ.get(name, "1"), MAX_COLUMNS):
            del os.environ[name]  # libraries read it too, some without validation
    _occupy_closed_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout = _guarded(sys.stdout, _GuardedOutput, _ClosedOutput)
    sys.stderr = _guarded(sys.stderr, _LossyOutput, _LostOutput)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def check_arguments(words: Sequence[str]) -> None:
    """Raises InputError for arguments that are not UTF-8, which contain lone surrogates."""
    problems = [
        f"argument {number}, {format_value(word)}"
        for number, word in enumerate(words, 1)
        if any("\ud800" <= character <= "\udfff" for character in word)
    ]
    if problems:
        raise InputError("The command line is not UTF-8 text; type it again, or rename the file it names:", problems)


def check_environment() -> None:
    """Raises InputError for a deleted current folder, and for invalid environment variables."""
    if current_folder_is_gone():  # some libraries would exit without a message
        raise InputError("the current folder was deleted; change to another one with cd")
    problems = []
    for name in RANGES:
        try:
            environment_number(name)
        except InputError as error:
            problems.append(str(error))
    for name in _THREADS:
        parts = os.environ.get(name, "").split(",")  # OpenMP accepts a list, one number per nesting level
        if parts != [""] and not all(_is_number(part.strip(), MAX_THREADS) for part in parts):
            problems.append(
                f"{name}={format_value(os.environ[name])}: must be a whole number from 1 to {MAX_THREADS:,}; unset "
                "it to use all cores"
            )
    rank, size = (os.environ.get(name, "").strip() for name in ("RANK", "WORLD_SIZE"))
    if not problems and rank and int(rank) >= int(size or 1):
        problems.append(f"RANK={rank}: must be less than WORLD_SIZE, {size or 'which is not set'}")
    if problems:
        raise InputError("The environment cannot be used:", problems)


def read_input() -> str:
    """All of standard input as text. Raises InputError if it is closed, not UTF-8, or too long."""
    text = decode(b"".join(_chunks()), "standard input")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def input_lines() -> Iterator[str]:
    """The lines of standard input as they arrive."""
    stream = _binary_input()
    number = 0
    while True:
        number += 1
        with _reading():
            line = stream.readline(MAX_INPUT_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_INPUT_BYTES:
            raise InputError(f"standard input, line {number}: longer than the {MAX_INPUT_BYTES:,} bytes that are read")
        try:
            yield line if isinstance(line, str) else line.decode("utf-8")
        except UnicodeDecodeError as error:
            wrong = f"byte 0x{line[error.start]:02x} at {error.start}"
            raise InputError(f"standard input, line {number}: {wrong} is not UTF-8") from error


def typed_lines() -> Iterator[str]:
    """What is typed, or the lines of a pipe; Ctrl-C and Ctrl-D end it."""
    from quatrain.cli.output import show

    if not input_is_terminal():
        yield from input_lines()
        return
    while True:
        try:
            yield input()
        except (EOFError, KeyboardInterrupt):
            show()
            return


def input_is_terminal() -> bool:
    """Whether standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def current_folder_is_gone() -> bool:
    """Whether the current folder has been deleted."""
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def silence_standard_output() -> None:
    """Discard buffered output at exit, because its reader has gone or it failed before."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _use_utf8() -> None:
    """Restart in Python's UTF-8 mode if the locale is ASCII, which cannot represent many file names."""
    if codecs.lookup(sys.getfilesystemencoding()).name != "ascii" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    with contextlib.suppress(OSError, ValueError):  # an embedded interpreter has no executable
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _occupy_closed_descriptors() -> None:
    """Open /dev/null for closed standard streams, so that no file gets their descriptor numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                os.open(os.devnull, os.O_RDWR)


class _GuardedOutput(io.FileIO):
    """A descriptor that raises the first failed write as OutputError and ignores all later writes."""

    failed = False

    def write(self, data: Any, /) -> int:
        if self.failed:
            return len(data)
        try:
            return super().write(data)
        except BrokenPipeError:
            self.failed = True
            raise
        except OSError as error:
            self.failed = True
            raise OutputError(f"standard output cannot be written: {error.strerror}") from error


class _ClosedOutput(io.RawIOBase):
    """Standard output that was already closed at start."""

    failed = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if self.failed:
            return len(data)
        self.failed = True
        raise OutputError("standard output is closed; send it to a file, to a program, or to /dev/null")


class _LossyOutput(io.FileIO):
    """A descriptor for messages that ignores failed writes, because there is no other place to report them."""

    def write(self, data: Any, /) -> int:
        with contextlib.suppress(OSError):
            return super().write(data)
        return len(data)


class _LostOutput(io.RawIOBase):
    """Standard error that was already closed at start."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        return len(data)


def _guarded(stream: Any, open_: type[io.FileIO], closed: type[io.RawIOBase]) -> Any:
    """A stream over one of these descriptors; unchanged if it has no plain one, as the console of Windows."""
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(closed()), encoding="utf-8", errors="backslashreplace")
    raw = getattr(getattr(stream, "buffer", None), "raw", getattr(stream, "buffer", None))
    if type(raw) is not io.FileIO:
        return stream
    guarded = io.BufferedWriter(open_(raw.fileno(), "w", closefd=False))
    return io.TextIOWrapper(
        guarded, encoding=stream.encoding, errors="backslashreplace", line_buffering=stream.line_buffering
    )


def _is_number(text: str, largest: int) -> bool:
    """Whether a text is an integer from 1 to `largest`."""
    return text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= largest


def _binary_input() -> Any:
    if sys.stdin is None:
        raise InputError("standard input is closed; connect it to a file or a pipe")
    return getattr(sys.stdin, "buffer", sys.stdin)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"standard input cannot be read: {error.strerror}") from error


def _chunks() -> Iterator[bytes]:
    stream, left = _binary_input(), MAX_INPUT_BYTES
    while True:
        with _reading():
            chunk = stream.read(min(left + 1, 1024 * 1024))
        if not chunk:
            return
        yield chunk.encode("utf-8", "surrogatepass") if isinstance(chunk, str) else chunk
        left -= len(chunk)
        if left < 0:
            raise InputError(
                f"standard input has more than the {MAX_INPUT_BYTES:,} bytes that are read; put it into a file"
            )
