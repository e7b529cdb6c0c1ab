"""Unwanted messages and ordinary ones: turns of dialogues that people wrote, and spam from a bank of phrases.

The ordinary messages are real; the spam is generated from `spam.toml`. The test has offers and calls that the training
never shows, so that a model has to know the manner, not the phrases. Its score says little about the spam of a real
mailbox: train on your own with `quatrain run spam data.source=my.csv`.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from quatrain.data.rows import read_records

SHARE = 0.35
"""Share of spam."""


def rows(paths: Sequence[Path], part: str) -> Iterator[dict[str, Any]]:
    """{"text", "label": "ham" or "spam"} of the part "train" or "test"; the origins are dialogues."""
    draw = random.Random(f"spam {part}")
    bank = tomllib.loads(files("quatrain.data.derived").joinpath("spam.toml").read_text(encoding="utf-8"))[part]
    for path in paths:
        for record in read_records(path):
            for turn in str(record.value["dialogue"]).splitlines():
                text = re.sub(r"^#Person\d+#:\s*", "", turn).strip()
                if len(text.split()) < 3 or draw.random() < 0.7:
                    continue
                yield {"text": text, "label": "ham"}
                if draw.random() < SHARE / (1 - SHARE):
                    yield {"text": _spam(bank, draw), "label": "spam"}


def _spam(bank: dict[str, list[str]], draw: random.Random) -> str:
    parts = [draw.choice(bank[name]) for name in ("opening", "offer", "call", "ending")]
    if draw.random() < 0.3:
        parts[1], parts[2] = parts[2], parts[1]
    name, ending = draw.choice(("best", "top", "my", "go")), draw.choice(("biz", "info", "net"))
    values = {
        "n": str(draw.choice((100, 250, 500, 1000, 5000, 20000))), "k": str(draw.randint(2, 30)),
        "u": f"www.{name}{draw.randint(10, 999)}.{ending}", "s": str(draw.randint(10000, 99999)),
        "p": f"0{draw.randint(100, 999)} {draw.randint(1000, 9999)}",
    }  # fmt: skip
    text = " ".join(filter(None, parts)).format(**values)
    return text.upper() if draw.random() < 0.1 else text
