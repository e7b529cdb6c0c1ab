"""Values: how they look in a question and in SQL, which are held out, and made-up ones that teach copying."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

LONGEST = 40
_PLAIN = re.compile(r"[^\W_]+(?:['’.&-][^\W_]+)*[.']?|&|'s-[^\W_]+")
_GLUE = frozenset("and or with without is are in of for from to whose where have has the that than not".split())
_NUMBERS = re.compile(r"\d{4}-\d\d-\d\d|\d+(?:\.\d+)?")
_WORDS = re.compile(r"[^\W_]+")
_LITERAL = re.compile(r"(?<!strftime\()'(?:[^']|'')*'|(?<![\w.])-?\d+(?:\.\d+)?(?![\w.])")
_OPERATOR = re.compile(r" (>=|<=|>|<|ASC|DESC)(?= |$)| (?:ASC|DESC)$")
_ONSETS = "b bl br c ch cl cr d dr f fl fr g gl gr h j k kl l m n p pl pr qu r s sh sk sl sp st t th tr v w y z".split()
_VOWELS = "a a a a a a e e e e e e i i i i o o o o u u ai ea ee ie oa oo ou é ö ü á".split()
_CODAS = ["", "", "", "", "n", "r", "l", "s", "t", "m", "d", "k", "x", "nd", "rt", "ck", "ll", "ss", "ng", "st", "rn"]


def number_text(value: float) -> str:
    """A number as questions and SQL write it: no exponent, no trailing zeros, at most two decimals of its own."""
    if isinstance(value, int):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.2f}".rstrip("0").rstrip(".")


def literal(value: Any) -> str:
    """The value as an SQL literal."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return number_text(value)


def shown(value: Any, rng: random.Random) -> str:
    """The value in a question: bare, or in double quotes at random and where it would be ambiguous."""
    if not isinstance(value, str):
        return number_text(value)
    return value if rng.random() > 0.12 and clear(value) else f'"{value}"'


@lru_cache(maxsize=20_000)
def clear(value: str) -> bool:
    """Whether the value is unambiguous without quotes: a few plain words, none of them a function word."""
    words = value.split(" ")
    return len(words) <= 5 and not _GLUE & set(words) and all(_PLAIN.fullmatch(word) for word in words)


def usable(value: Any) -> bool:
    """Whether a question can contain the value: short, printable, and recoverable from the text."""
    if isinstance(value, bool) or value is None or isinstance(value, bytes):
        return False
    if isinstance(value, int):
        return abs(value) < 10**12
    if isinstance(value, float):
        return abs(value) < 1e12 and round(value, 2) == value
    return (
        0 < len(value) <= LONGEST and value == value.strip() and value.isprintable() and '"' not in value
        and "  " not in value and "%" not in value and "\ufffd" not in value and any(map(str.isalnum, value))
    )  # fmt: skip


def written(value: Any) -> str:
    """The text that identifies a value: the digits of a number, the day of a date, a string unchanged."""
    return value if isinstance(value, str) else number_text(abs(value))


def skeleton(sql: str) -> str:
    """The SQL without values and sort directions: how it combines which tables and columns."""
    return _OPERATOR.sub(" ~", _LITERAL.sub("?", sql))


class HeldOut:
    """The values that no text of any stage may hold.

    A value is held out by a hash of its text and the seed, so the choice does not depend on the order of rows and holds
    in every column where the value occurs.
    """

    def __init__(self, seed: int, share: float = 0.1):
        self.share = share
        self._salt = f"held out {seed} ".encode()
        self.values: set[str] = set()
        self._numbers: set[str] = set()
        self._first: dict[str, list[str]] = {}

    def draw(self, texts: Iterable[str]) -> list[str]:
        """The texts whose hash falls into the held-out share; at least the nearest one of a short list."""
        ranked = sorted((self._place(text), text) for text in texts)
        return [text for place, text in ranked if place < self.share] or [text for _, text in ranked[:1]]

    def _place(self, text: str) -> float:
        digest = hashlib.blake2b(self._salt + text.encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") / 2**32

    def add(self, texts: Iterable[str]) -> None:
        """Hold out these values."""
        for text in texts:
            if text in self.values:
                continue
            self.values.add(text)
            if _NUMBERS.fullmatch(text):
                self._numbers.add(text)
            else:
                words = _WORDS.findall(text)
                self._first.setdefault(words[0] if words else text, []).append(text)

    def __contains__(self, text: object) -> bool:
        return text in self.values

    def found(self, text: str) -> str | None:
        """The first held-out value that a text contains as whole words or as a whole number; None if there is none."""
        for number in _NUMBERS.findall(text):
            if number in self._numbers:
                return number
        for word in self._first.keys() & set(_WORDS.findall(text)):
            for value in self._first[word]:
                if _stands(value, text) or ("'" in value and _stands(value.replace("'", "''"), text)):
                    return value
        return None


def _stands(value: str, text: str) -> bool:
    place = text.find(value)
    while place >= 0:
        end = place + len(value)
        before = place == 0 or not (text[place - 1].isalnum() and value[0].isalnum())
        after = end == len(text) or not (text[end].isalnum() and value[-1].isalnum())
        if before and after:
            return True
        place = text.find(value, place + 1)
    return False


def made_up_word(rng: random.Random, like: str) -> str:
    """A word that does not exist, about as long as `like` and with its capitals."""
    if like.isdigit():
        return "".join(str(int(rng.random() * 10)) for _ in like)
    word = ""
    target = max(2, len(like) + int(rng.random() * 3) - 1)
    while len(word) < target:
        word += _pick(_ONSETS, rng) + _pick(_VOWELS, rng) + _pick(_CODAS, rng)
    if like.isupper() and len(like) > 1:
        return word.upper()[:target]
    return word.capitalize() if like[:1].isupper() else word


def made_up_text(rng: random.Random, examples: Sequence[str]) -> str:
    """A value like the examples: with words exchanged between them, or with invented words."""
    pattern = _pick(examples, rng)
    words = pattern.split(" ")
    kind = rng.random()
    for place, word in enumerate(words):
        if kind < 0.25 or (kind < 0.55 and rng.random() < 0.5):
            core = _WORDS.search(word)
            if core:
                words[place] = word[: core.start()] + made_up_word(rng, core.group()) + word[core.end() :]
        elif rng.random() < 0.6:
            words[place] = _pick(_pick(examples, rng).split(" "), rng)
    if kind > 0.93 and len(words) < 3:
        words.append(_pick(_pick(examples, rng).split(" "), rng))
    text = " ".join(words).rstrip(",")
    return text if usable(text) else made_up_word(rng, "Something")


def made_up_number(rng: random.Random, like: float) -> float | int:
    """A number with the magnitude and decimals of `like`."""
    size = max(abs(like), 2) * 10 ** (rng.random() * 1.2 - 0.6)
    if isinstance(like, float) and like != int(like):
        return round(size, 2 if round(like, 1) != like else 1)
    value = int(size)
    if value > 200 and rng.random() < 0.3:
        value = int(round(value, 1 - len(str(value)) + int(rng.random() * 2)))
    return value


def made_up_day(rng: random.Random, like: str) -> str:
    """A day within some years of `like`, in ISO form."""
    year = int(like[:4]) + int(rng.random() * 9) - 4
    return f"{year:04d}-{1 + int(rng.random() * 12):02d}-{1 + int(rng.random() * 28):02d}"


def _pick(items: Sequence[Any], rng: random.Random) -> Any:
    return items[int(rng.random() * len(items))]
