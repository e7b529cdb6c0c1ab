"""Splits long texts for tokenization without changing a token: the pieces' ids, concatenated, are those of the text.

Every common pre-tokenizer ends a word before white space, whatever follows (GPT-2's pattern and its successors look
ahead only after white space). So a split before white space that follows another character is exact, unless the
tokenizer changes the beginning of a text (SentencePiece's leading space) or has tokens that span white space; such
texts are not split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from quatrain.tokenizers.training import FREE_SPACES

if TYPE_CHECKING:
    from quatrain.tokenizers.tokenizer import Tokenizer

#: Characters of a piece: large enough to make call overhead negligible, small enough to limit memory.
PIECE = 16_384

_ANY_SPACE = re.compile(r"(?<=\S)[ \n\t\r]")
# Newer patterns attach line ends to the punctuation before them, so only a space is safe.
_SPACE = re.compile(r"(?<=\S) ")
_ANYWHERE = re.compile(r"(?s).")

_LOCAL_NORMALIZERS = {"BertNormalizer", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"}
_SPLITTING = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer"}
_NEUTRAL = {"Digits", "Punctuation", "UnicodeScripts"}


def cut_pattern(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """The pattern before whose matches a text may be split for this tokenizer; None if it must not be split."""
    description = json.loads(tokenizer.backend.to_str())
    added = description.get("added_tokens") or []
    for token in added:
        if token["lstrip"] or token["rstrip"] or token["single_word"] or any(map(str.isspace, token["content"])):
            return None
    if not all(each["type"] in _LOCAL_NORMALIZERS for each in _steps(description["normalizer"], "normalizers")):
        return None
    model = description["model"]
    steps = _steps(description["pre_tokenizer"], "pretokenizers")
    if not steps:
        characters = model["type"] == "BPE" and not model["merges"] and not model.get("ignore_merges")
        return (_ANY_SPACE if added else _ANYWHERE) if characters else None
    patterns = [_pattern(step) for step in steps]
    if None in patterns or not any(patterns):
        return None
    return _SPACE if _SPACE in patterns else _ANY_SPACE


def _steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as the list of its steps."""
    if part is None:
        return []
    return [step for each in part[name] for step in _steps(each, name)] if part["type"] == "Sequence" else [part]


def _pattern(step: dict[str, Any]) -> re.Pattern[str] | bool | None:
    """Where a pre-tokenizer step allows a split: a pattern, False if anywhere, None if nowhere."""
    kind = step["type"]
    if kind in _SPLITTING:
        return _ANY_SPACE
    if kind in _NEUTRAL:
        return False
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return _ANY_SPACE if step["use_regex"] else False
    if kind == "Metaspace" and step.get("prepend_scheme") == "never" and step.get("split", True):
        return _SPACE
    if kind == "Split":
        regex = step["pattern"].get("Regex") or ""
        if regex == r"\n":
            return False
        if regex == FREE_SPACES:
            return _ANY_SPACE
        return _SPACE if r"\s+(?!\S)" in regex else None
    return None


def cut(pieces: Iterable[str], pattern: re.Pattern[str] | None, size: int = PIECE) -> Iterator[str]:
    """Yield one document in pieces of about `size` characters, split only where `pattern` allows."""
    parts: list[str] = []
    length = 0
    for piece in pieces:
        parts.append(piece)
        length += len(piece)
        if pattern is None or length < size:
            continue
        text, parts, length = "".join(parts), [], 0
        start = 0
        while len(text) - start > size and (match := pattern.search(text, start + size)):
            yield text[start : match.start()]
            start = match.start()
        parts, length = [text[start:]], 0
    if rest := "".join(parts):
        yield rest
