"""Whatever stands in the place of a recipe, or in an override: InputError, soon, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quick_set import some

from quatrain.core.errors import InputError
from quatrain.runs.recipe import Recipe, load, loads, to_dict

PATHS = ["", "a\0b", "x" * 300, "~nosuch", "~nosuch/x.toml", "no/where.toml", "\x1b[2J", "/dev/null", "/etc", ".", "-"]
CONTENTS = {
    "deep lists": b"x = " + b"[" * 10_000 + b"]" * 10_000,
    "less deep lists": b"x = " + b"[" * 80 + b"]" * 80,
    "deep tables": b"a" + b".a" * 5_000 + b" = 1",
    "deep headers": b"[a" + b".a" * 300 + b"]",
    "digits": b"seed = " + b"9" * 5_000,
    "hexadecimal digits": b"seed = 0x" + b"f" * 5_000,
    "exponent": b"[model]\nrope_theta = 1e99999",
    "mark": b"\xef\xbb\xbfseed = 'x'",
    "latin": b"name = '\xe4'",
    "nul": b"name = 'a\0b'",
    "utf-16": "name = 'x'".encode("utf-16"),
    "escapes": b"name = '\x1b[2J'",
    "nothing": b"",
    "infinity": b"[model]\nrope_theta = inf",
    "json": b'{"name": "x"}',
}


@pytest.mark.parametrize("path", PATHS)
def test_paths_that_are_no_recipe(path: str) -> None:
    with pytest.raises(InputError) as caught:
        load(path)
    assert "\x1b" not in str(caught.value) and "\0" not in str(caught.value)


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_contents_that_are_no_recipe(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load(path)
    assert len(str(caught.value)) < 5_000 and "\x1b" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes by name are of POSIX")
def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "circle.toml").symlink_to(tmp_path / "circle.toml")
    (tmp_path / "gone.toml").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.toml").mkdir()
    for name in ("pipe", "circle", "gone", "folder"):
        with pytest.raises(InputError):
            load(tmp_path / f"{name}.toml")


def keys_of(value: Any, place: str = "") -> list[str]:
    """Every place of a recipe, as an override names it."""
    if isinstance(value, dict):
        found = [key for name, item in value.items() for key in keys_of(item, f"{place}.{name}" if place else name)]
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        found = [key for number, item in enumerate(value) for key in keys_of(item, f"{place}.{number}")]
    else:
        found = []
    return [*found, *([place] if place else [])]


KEYS = sorted(
    {key for name in ("quickstart", "sql-finetune", "sentiment-lora") for key in keys_of(to_dict(load(name)))}
)
VALUES = [
    "none", "0", "-1", "1", "true", "nan", "inf", "-inf", "1e400", "0.5", "1" * 40, "9" * 5_000, "0x" + "f" * 3_000,
    "[]", "[[]]", "{}", "{a=1}", "[" * 3_000, "{a=" * 200, "''", "text", "\x1b[2J", "a\0b", "\ud800", "1979-05-27",
    '["a", 1]', "[{kind='tokenizer'}]", "1\nx=2", "=", "9223372036854775808", "-9223372036854775809",
]  # fmt: skip


@pytest.mark.parametrize("value", some(VALUES, ["none", "0", "text"]), ids=range(len(VALUES)))
def test_a_wrong_value_at_any_key(value: str) -> None:
    for key in KEYS:
        for name in ("quickstart", "sql-finetune"):
            try:
                assert isinstance(load(name, [f"{key}={value}"]), Recipe)
            except InputError as error:
                assert len(str(error)) < 5_000
                assert "\x1b" not in str(error)


@given(st.lists(st.text(alphabet="stage.[]0129-=pretrain²\0\x1bé", max_size=24), max_size=3))
@settings(max_examples=300, deadline=None)
def test_any_overrides(overrides: list[str]) -> None:
    try:
        load("quickstart", overrides)
    except InputError:
        return


@pytest.mark.parametrize(
    "key", ["a" + ".a" * 5_000, "stage[" + "9" * 5_000 + "]", "stage.²", "stage.٣.train", "[0]", "[-1]"]
)
def test_keys_that_are_none(key: str) -> None:
    with pytest.raises(InputError):
        load("quickstart", [f"{key}=1"])


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")))
@settings(max_examples=200, deadline=None)
def test_any_text(content: bytes) -> None:
    with pytest.raises(InputError):
        loads(content.decode("latin-1"))
