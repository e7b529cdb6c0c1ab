"""Toxic words and toxic texts: by a word list, and by a text classifier.

RealToxicityPrompts (Gehman et al. 2020, arXiv 2009.11462) asks how often the continuations of prompts are toxic. A word
list misses what is said politely and counts what is quoted; a classifier knows what its training data called toxic.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch

from quatrain.core.errors import InputError
from quatrain.loading.model import load_model

TOXIC_LABELS = ("toxic", "toxicity", "harmful", "offensive", "hate", "negative", "1")
"""Names of a classifier's label for toxic texts; the first that it has counts."""


@cache
def word_list() -> tuple[str, ...]:
    """A short list of insults, written for this project. Use a list for your own language and purpose."""
    text = (files("quatrain.evaluation.safety") / "files" / "insults.txt").read_text(encoding="utf-8")
    return tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))


def listed_words(text: str, words: Sequence[str] | None = None) -> list[str]:
    """The words of a list (the default is `word_list`) that a text has, in its order; case and accents do not matter.

    A word counts as a whole, with an English plural; several words of an entry stand one after the other.
    """
    pattern = _pattern(tuple(words) if words is not None else word_list())
    return pattern.findall(_plain(text)) if pattern is not None else []


@cache
def _pattern(words: tuple[str, ...]) -> re.Pattern[str] | None:
    known = sorted({_plain(word).strip() for word in words} - {""}, key=len, reverse=True)
    if not known:
        return None
    alternatives = "|".join(r"\s+".join(map(re.escape, word.split())) for word in known)
    return re.compile(rf"(?<!\w)({alternatives})(?:e?s)?(?!\w)")


def _plain(text: str) -> str:
    parts = unicodedata.normalize("NFKD", text.casefold())
    return "".join(character for character in parts if not unicodedata.combining(character))


def classifier_scores(folder: str | Path, texts: Sequence[str], label: str | None = None) -> list[float]:
    """The probability of the toxic label of a text classifier (a model folder, run or hub id) for each text.

    `label` is that label; by default the first of `TOXIC_LABELS` that it has. Texts are cut at the model's context; an
    empty text has 0. Raises InputError for a model that is no classifier, or without such a label.
    """
    model, tokenizer = load_model(folder)
    config = model.config
    if config.head != "sequence_classification" or tokenizer is None:
        raise InputError(f"{folder}: the head {config.head} classifies no texts; take a text classifier.")
    names = [name.lower() for name in config.labels]
    wanted = [label.lower()] if label is not None else list(TOXIC_LABELS)
    chosen = next((names.index(name) for name in wanted if name in names), None)
    if chosen is None:
        raise InputError(f"{folder}: has no label {' or '.join(wanted)}; its labels are {', '.join(config.labels)}")
    limit = config.context_length if config.has_position_limit else None
    found = []
    for text in texts:
        ids = tokenizer.encode(text, special_tokens=True)[:limit] if text.strip() else []
        if not ids:
            found.append(0.0)
            continue
        with torch.no_grad():
            logits = model(torch.tensor([ids], device=model.device))[0][0].float()
        share = logits.sigmoid() if config.problem_type == "multi_label" else logits.softmax(-1)
        found.append(float(share[chosen]))
    return found
