"""Sample texts on which two tokenizers are compared: words, code, numbers, scripts, spaces and broken text.

They are made from a seed, so that every process compares the same texts.
"""

from __future__ import annotations

import random

FIXTURES = (
    "Café, naïve, Zoë and Beyoncé", "Cafe\u0301", "Hello world", "  two  spaces ", "tabs\tand\nlines\r\n\r\n", "",
    "don't we'll I'M THEY'RE", "1234567 89.50 1,000,000", "SELECT name FROM users WHERE age >= 30;",
    "def f(x):\n    return x**2  # square", "日本語のテキスト", "Привет, мир!", "مرحبا بالعالم", "नमस्ते दुनिया",
    "👩‍👩‍👧 🎉 emoji", "https://example.org/a_b-c?d=e&f=1", "CamelCase snake_case kebab-case SQLite iPhone",
    "…“quotes” — dashes ©®™", "a\u00a0b\u2003c\u200bd", "ÀÉÎÕÜ ß ﬁ ½ ①",
)  # fmt: skip
"""Texts that tokenizers often treat differently."""

_ALPHABETS = (
    "etaoin shrdlu", "ABCdef xyz", "0123456789 .,", " \n\t", "(){}[]<>=+-*/;:'\"", "éüñçåœ ", "абвгд ", "日本語中文",
    "αβγδ ", "'s't're've'm'll'd ",
)  # fmt: skip


def random_texts(count: int, seed: int = 0) -> list[str]:
    """`count` texts of up to 40 characters that mix letters of several scripts, digits, punctuation and spaces."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        runs = ["".join(draw.choices(draw.choice(_ALPHABETS), k=draw.randint(1, 8))) for _ in range(draw.randint(1, 6))]
        texts.append("".join(runs)[:40])
    return texts


WORD_SAMPLES = [*FIXTURES, *random_texts(500)]
"""The fixtures and 500 random texts."""
