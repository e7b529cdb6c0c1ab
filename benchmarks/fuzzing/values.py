"""Bad values, and ways to break texts, bytes and trees of JSON."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Raw:
    """What stands in a file as it is, where no JSON writer would write it."""

    text: str


ABSENT = object()
"""A key that is taken out."""

HUGE = 10**30
VALUES: tuple[Any, ...] = (
    None, True, False, "", "x", "12", "nan", "none", "default", "../..", "\x1b[31mred\x1b[0m", "a\0b", "\ud800",
    "é" * 50,
    "x" * 5000, 0, -1, 1, 2, 3, 7, 65_537, 100_000, 2**31, 2**63, 2**64, HUGE, -HUGE, 0.5, -0.5, 1e-38, 1e300, 1e-300,
    float("nan"), float("inf"), float("-inf"), [], {}, [None], [1, 2], ["x"], [[]], [{}], {"x": 1}, {"x": None},
    {"type": "x"}, [[[[]]]], Raw("1" * 400), Raw("1" * 5000), Raw("1e400"), Raw("[" * 100 + "]" * 100), ABSENT,
)  # fmt: skip
"""What is put at a key, whatever belongs there."""

TEXTS = (
    "", " ", "\n", "-", "--", "-1", "-x", "0", "1", "2", "-0", "1.5", "1e400", "1e-38", "nan", "inf", "-inf", "none",
    "None", "null", "true", "False", "[]", "[1, 2]", "{}", "{", "x", "é", "日本語", "\U0001f600", "a\0b", "\x1b[2J",
    "\udcff\udcfe", "\ud800", "x" * 300, "x" * 5000, "..", "/", ".", "~", "~nosuch", "~nosuch/x", "*", "a=b", "a=",
    "=b",
    "=", "a.b.c=d", "%s", "%(x)s", "{run}", "{0}", "'; drop table x; --", "\\", "\"", "'", "1" * 5000, str(HUGE),
    str(2**63), "99999999", "-5", "0x10", "1_000", "１２", "a,b", ",", "text=label", "http://x.invalid/y", "hf:x/y",
    "hf:",
    "gutenberg:x", "gutenberg:-1", "x/y", "x/y/z", "x/", "/x", "con", "[red]x[/red]", "[/]", "\u202eabc", "\ufeffx",
)  # fmt: skip
"""What is put in the place of an argument."""

STRINGS = tuple(text for text in TEXTS if "\0" not in text)
"""Those that a command line can hold."""


def dump(value: Any, *, indent: int | None = None) -> bytes:
    """JSON of a tree that may hold `Raw` parts and lone surrogates."""
    raws: list[str] = []

    def plain(item: Any) -> Any:
        if isinstance(item, Raw):
            raws.append(item.text)
            return f"@@raw{len(raws) - 1}@@"
        if isinstance(item, dict):
            return {key: plain(child) for key, child in item.items()}
        return [plain(child) for child in item] if isinstance(item, list) else item

    text = json.dumps(plain(value), indent=indent)
    for number, raw in enumerate(raws):
        text = text.replace(f'"@@raw{number}@@"', raw)
    return text.encode("utf-8", "surrogatepass")


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a tree of JSON, the top left out; of a long list only the first ones."""
    children: Any = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value[:6])
    for key, child in children:
        yield (*place, key)
        yield from places(child, (*place, key))


def put(tree: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of a tree with another value at a place; `ABSENT` takes the place out."""
    tree = copy.deepcopy(tree)
    inner = tree
    for key in place[:-1]:
        inner = inner[key]
    if value is ABSENT:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return tree


def get(tree: Any, place: tuple[Any, ...]) -> Any:
    """The value at a place."""
    for key in place:
        tree = tree[key]
    return tree


def mutated_tree(
    tree: Any, draw: random.Random, keys: tuple[str, ...] = (), values: tuple[Any, ...] = VALUES
) -> tuple[Any, tuple[Any, ...], Any]:
    """A tree with one bad value, its place and the value; `keys` may come in that are not there."""
    every = list(places(tree))
    if isinstance(tree, dict) and ((keys and draw.random() < 0.4) or not every):
        place: tuple[Any, ...] = (draw.choice(keys or ("x",)),)
        tree = {**tree, place[0]: tree.get(place[0])}
    else:
        # Most of a large file is a vocabulary; a third of the inputs goes to the first two levels.
        near = [place for place in every if len(place) <= 2]
        place = draw.choice(near if near and draw.random() < 0.34 else every)
    value = draw.choice(values)
    return put(tree, place, value), place, value


def shown(value: Any) -> str:
    """A value in a few words, for the description of an input."""
    text = "(taken out)" if value is ABSENT else ascii(value)
    return text if len(text) < 80 else f"{text[:60]}… ({len(text)} characters)"


# Texts that are no longer what they were: (name, function, whether the result can be no valid JSON object)


def _truncated(data: bytes, draw: random.Random) -> bytes:
    whole = data.rstrip()
    return whole[: draw.randrange(len(whole))] if whole else b""


def _flipped(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _cut_out(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[:start] + data[start + draw.randrange(1, 40) :]


def _doubled(data: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[:start] + data[start : start + 60] + data[start:]


def _with_latin(data: bytes, draw: random.Random) -> bytes:
    quotes = [place for place, byte in enumerate(data) if byte == 0x22]
    place = draw.choice(quotes) + 1 if quotes else 0
    return data[:place] + b"Gr\xfc\xdfe" + data[place:]


def _with_nul(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data) + 1)
    return data[:place] + b"\0" + data[place:]


BYTES: dict[str, tuple[Callable[[bytes, random.Random], bytes], bool]] = {
    "truncated": (_truncated, True),
    "with flipped bytes": (_flipped, False),
    "with a part cut out": (_cut_out, False),
    "with a part doubled": (_doubled, False),
    "with Latin-1 bytes": (_with_latin, True),
    "with a NUL": (_with_nul, True),
    "behind a byte order mark": (lambda data, draw: b"\xef\xbb\xbf" + data, False),
    "in UTF-16": (lambda data, draw: data.decode("utf-8", "replace").encode("utf-16"), False),
    "in UTF-16 without its mark": (lambda data, draw: data.decode("utf-8", "replace").encode("utf-16-le"), True),
    "in UTF-32": (lambda data, draw: data.decode("utf-8", "replace").encode("utf-32"), True),
    "with text behind it": (lambda data, draw: data.rstrip() + b" x", True),
    "twice": (lambda data, draw: data + data, True),
    "empty": (lambda data, draw: b"", True),
    "white space": (lambda data, draw: b" \n\t" * 9, True),
    "a list": (lambda data, draw: b"[" + data + b"]", True),
    "a number": (lambda data, draw: b"7", True),
    "null": (lambda data, draw: b"null", True),
    "a text": (lambda data, draw: b'"x"', True),
    "nested 10,000 deep": (lambda data, draw: b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}", True),
    "nested in tables": (lambda data, draw: b'{"a":' * 10_000 + b"1" + b"}" * 10_000, True),
    "a number of 5,000 digits": (lambda data, draw: b'{"a": ' + b"1" * 5000 + b"}", True),
    "an unpaired surrogate": (lambda data, draw: data.replace(b": ", b': "\\ud800", "y": ', 1), False),
    "a PNG image": (lambda data, draw: b"\x89PNG\r\n\x1a\n" + bytes(range(256)), True),
    "HTML": (lambda data, draw: b"<!DOCTYPE html><html><body>404</body></html>", True),
    "Windows' ends of lines": (lambda data, draw: data.replace(b"\n", b"\r\n"), False),
}
"""Broken forms of a text; True: a JSON object it cannot be."""
