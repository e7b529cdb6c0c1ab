"""Reads the user's files safely: checks a path before opening it, and parses bytes into typed values.

All JSON, TOML and safetensors headers written by users or other libraries are read here. A bad file raises InputError
with the file, the position, what was expected and a fix. Limits on size and nesting are checked before parsing, so no
file can hang the process or exhaust memory.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value, type_name

MAX_DEPTH = 64
"""Limit on nested lists and tables. Real configurations and tool schemas stay below 20."""

MAX_DIGITS = 300
"""Limit on the digits of an integer; float64 ends at 309."""

MAX_JSON_BYTES = 16 * 1024 * 1024
"""Default size limit, for configurations, manifests and label files; readers of larger files pass their own."""

_KINDS = {
    stat.S_ISDIR: "a folder, not a file",
    stat.S_ISFIFO: "a pipe; write its content to a file first",
    stat.S_ISSOCK: "a socket, not a file",
    stat.S_ISCHR: "a device, not a file",
    stat.S_ISBLK: "a device, not a file",
}


def user_path(text: str | Path, what: str = "the path") -> Path:
    """A path from the user with `~` expanded. Raises InputError for one that cannot exist.

    That covers NUL bytes, names that are too long, symbolic link loops and the home of an unknown user.
    """
    text = str(text)
    if "\0" in text:
        raise InputError(f"{what} {format_value(text, 200)} contains a NUL character, which no file name can have")
    if not text:
        raise InputError(f"{what} is empty; give a file or folder")
    path = Path(text)
    try:
        path = path.expanduser()
        path.stat()
    except RuntimeError as error:  # ~nosuch, or no HOME
        raise InputError(
            f"{what} {format_value(text, 200)}: the home folder of {path.parts[0]} is not known"
        ) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
            raise InputError(f"{what} {format_value(text, 200)} cannot be opened: {_reason(error)}") from error
    except ValueError as error:
        raise InputError(f"{what} {format_value(text, 200)} cannot be opened: {error}") from error
    return path


def exists(text: str | Path) -> bool:
    """Whether a path from the user exists; False for one that cannot exist or cannot be accessed."""
    try:
        return user_path(text).exists()
    except (InputError, OSError):
        return False


def read_bytes(path: str | Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The content of a regular file of at most `max_bytes`.

    Raises InputError for a file that does not exist, is not a regular file (a pipe would block), cannot be read, or is
    larger.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise InputError(f"{path} has {size:,} bytes; at most {max_bytes:,} are read of such a file")
        try:
            content = file.read(max_bytes + 1)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {_reason(error)}") from error
    if len(content) > max_bytes:
        raise InputError(f"{path} has more than the {max_bytes:,} bytes that are read of such a file")
    return content


def sha256_of(path: str | Path, *, progress: Callable[[int, int | None], None] | None = None) -> str:
    """The SHA-256 of a file in hexadecimal, read in blocks. `progress` is called with the bytes done and the total."""
    digest = hashlib.sha256()
    done, total = 0, os.path.getsize(path)
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
            done += len(block)
            if progress is not None:
                progress(done, total)
    return digest.hexdigest()


def open_regular(path: str | Path) -> IO[bytes]:
    """Open a regular file for reading bytes, for files of any size that are read in blocks.

    Raises InputError for a file that does not exist, cannot be read, or is a folder, a pipe, a socket or a device.
    """
    path = user_path(path)
    try:
        # without O_NONBLOCK, opening a pipe without a writer would block
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        if path.is_dir():
            raise InputError(f"{path} is a folder, not a file") from error
        raise InputError(f"{path} cannot be read: {_reason(error)}") from error
    about = os.fstat(handle)
    for is_kind, description in _KINDS.items():
        if is_kind(about.st_mode):
            os.close(handle)
            raise InputError(f"{path} is {description}")
    return os.fdopen(handle, "rb")


def read_text(path: str | Path, max_bytes: int = MAX_JSON_BYTES) -> str:
    """The text of a UTF-8 file without byte order mark. Raises InputError with the position of the first wrong byte."""
    return decode(read_bytes(path, max_bytes), str(path))


def decode(content: bytes, where: str) -> str:
    """Decode UTF-8, or UTF-16 with a byte order mark. `where` names the file in messages."""
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if content.startswith(mark):
            try:
                return content.decode(encoding)
            except UnicodeDecodeError as error:
                raise InputError(f"{where} begins like UTF-16 but is not: {error.reason}") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(
            f"{where}, line {line}: byte 0x{content[error.start]:02x} at {error.start:,} is not UTF-8; save the file "
            "as UTF-8"
        ) from error
    if "\0" in text:
        raise InputError(f"{where}, line {text[: text.index(chr(0))].count(chr(10)) + 1}: a NUL character; is it text?")
    return text


def read_json(path: str | Path, schema: Any = dict, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value of a JSON file, checked against `schema`: `dict`, `list`, or any type that pydantic knows.

    Raises InputError as `parse_json` does.
    """
    text = read_text(path, max_bytes)
    value = parse_json(text, str(path), schema)
    if "\\ud" in text or "\\uD" in text:
        _refuse_half_characters(value, str(path))
    return value


def parse_json(text: str, where: str, schema: Any = dict) -> Any:
    """The value of a JSON text. `where` names it in messages; `schema` is as in `read_json`.

    Raises InputError for a syntax error with line and column, nesting beyond `MAX_DEPTH`, numbers beyond `MAX_DIGITS`,
    text after the value, and a value of another type, with all wrong places at once.
    """
    _check_depth(text, where)
    try:
        value = json.loads(text, parse_int=parse_whole_number)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {error}") from error
    return typed(value, where, schema)


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The table of a TOML text. Raises InputError for a syntax error, deep nesting and numbers beyond `MAX_DIGITS`."""
    import tomllib

    try:
        value = tomllib.loads(text.replace("\r\n", "\n"))
    except RecursionError as error:
        raise InputError(f"{where}: nested too deeply; at most {MAX_DEPTH} levels are read") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where}: not TOML: {error}") from error
    except ValueError as error:  # more digits than Python parses
        raise InputError(f"{where}: a number has too many digits; at most {MAX_DIGITS} are read") from error
    if depth_of(value) > MAX_DEPTH:
        raise InputError(f"{where}: nested {depth_of(value)} levels deep; at most {MAX_DEPTH} are read")
    return value


def typed(value: Any, where: str, schema: Any) -> Any:
    """`value` validated as the type `schema`. Raises InputError with all wrong places."""
    if schema is Any:
        return value
    if schema in (dict, list, str):
        if not isinstance(value, schema):
            names = {dict: "an object {…}", list: "a list […]", str: "text"}
            raise InputError(f"{where}: must be {names[schema]}, not {type_name(value)}")
        return value
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(schema).validate_python(value, strict=True)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {format_value(problem['input'])}: {problem['msg']}"
            for problem in error.errors(include_url=False)
        ]
        raise InputError(f"{where} cannot be used:", problems) from error


def lone_surrogate(text: str) -> str | None:
    """The fault of a text with a lone surrogate, which JSON can write but no encoding can; None if it has none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        return f"half of a character (a lone surrogate, \\u{code:04x}) at character {error.start}; remove it"
    return None


def depth_of(value: Any) -> int:
    """The nesting depth of lists and tables in a value, 0 for a scalar. Not recursive."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return depth


def _check_depth(text: str, where: str) -> None:
    """Raise InputError for deep nesting before the parser recurses into it; brackets in strings do not count."""
    depth, in_string, escaped = 0, False, False
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise InputError(f"{where}: nested deeper than the {MAX_DEPTH} levels that are read")
        elif character in "]}":
            depth -= 1


def _refuse_half_characters(value: Any, where: str) -> None:
    """Raise InputError for lone surrogates, which no file and no tokenizer can hold."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        raise InputError(f"{where}: \\u{code:04x} is one half of a character, without the other; remove it") from error


def parse_whole_number(digits: str) -> int:
    """An integer of JSON. Raises ValueError for more than `MAX_DIGITS` digits."""
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits; at most {MAX_DIGITS} are read")
    return int(digits)


def _reason(error: OSError) -> str:
    return {
        errno.ENOENT: "it does not exist",
        errno.EACCES: "you have no permission",
        errno.EPERM: "you have no permission",
        errno.ELOOP: "its symbolic links go in a circle",
        errno.ENAMETOOLONG: "the name is too long",
        errno.ENXIO: "it is a socket or a pipe without a writer",
    }.get(error.errno or 0, error.strerror or str(error))
