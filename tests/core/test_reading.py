"""The one reader of users' files: whatever a file is, there is a value of its type or one InputError that names it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core import reading
from quatrain.core.errors import InputError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def refused(path: Path, content: bytes | None = None) -> str:
    """What is said of a file of JSON that cannot be used."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        reading.read_json(path)
    assert path.name[:9].partition("\0")[0] in str(caught.value)
    return str(caught.value)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()[:-1]))
def test_any_bytes_are_a_table_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "x.json"
    path.write_bytes(content)
    try:
        assert isinstance(reading.read_json(path), dict)
    except InputError as error:
        assert "x.json" in str(error) and "Traceback" not in str(error)


@settings(max_examples=200, deadline=None)
@given(value=st.dictionaries(st.text(max_size=9), VALUES, max_size=4), indent=st.sampled_from([None, 2]))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, object], indent: int
) -> None:
    path = tmp_path_factory.mktemp("written") / "x.json"
    text = json.dumps(value, indent=indent)
    for content in (text.encode(), b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16")):
        path.write_bytes(content)
        assert reading.read_json(path) == json.loads(text)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "not valid JSON"),
        (b'{"a": 1} x', "not valid JSON: Extra data"),
        (b'{"a": 1', "line 1, column 8"),
        (b"[1]", "must be an object {…}, not a list"),
        (b'{"a": "Gr\xfc\xdfe"}', "byte 0xfc at 9 is not UTF-8"),
        (b'{"a": "\0"}', "a NUL character"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested deeper than the 64 levels"),
        (b'{"a": ' + b"1" * 5000 + b"}", "a number of 5,000 digits"),
        (b'{"a": "\\ud83d"}', "\\ud83d is one half of a character"),
    ],
)
def test_what_is_no_table_is_refused_with_its_place(tmp_path: Path, content: bytes, part: str) -> None:
    assert part in refused(tmp_path / "x.json", content)


def test_two_halves_are_a_character(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'{"a": "\\ud83d\\ude00"}')
    assert reading.read_json(tmp_path / "x.json") == {"a": "\U0001f600"}


@pytest.mark.skipif(os.name != "posix", reason="kinds of files of POSIX")
def test_kinds_of_files_are_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    said = {
        name: refused(tmp_path / name) for name in ("folder", "pipe", "circle", "zero", "socket", "large", "absent")
    }
    assert "is a folder" in said["folder"] and "pipe" in said["pipe"] and "in a circle" in said["circle"]
    assert "device" in said["zero"] and "socket" in said["socket"]
    assert "at most" in said["large"] and "does not exist" in said["absent"]
    for name in ("x" * 300, "é" * 200, "a\0b"):
        refused(tmp_path / name)


def test_homes_that_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="home folder"):
        reading.user_path("~nosuch-user/x")


@pytest.mark.parametrize("content", [b"x = " + b"1" * 5000, b"x = " + b"[" * 10_000, b"x = ", b"\xff", b"x = 1\nx = 2"])
def test_texts_that_are_no_toml(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.toml").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.toml") as caught:
        reading.parse_toml(reading.read_text(tmp_path / "x.toml"), str(tmp_path / "x.toml"))
    assert "set_int_max_str_digits" not in str(caught.value)
