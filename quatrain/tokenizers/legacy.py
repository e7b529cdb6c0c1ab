"""Shared by the readers of tokenizer files older than tokenizer.json: the intermediate tokenizer, JSON vocabularies,
and errors of the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend

from quatrain.core import reading
from quatrain.core.errors import InputError, QuatrainError
from quatrain.tokenizers.token_config import MAX_TOKENIZER_BYTES

LARGEST_ID = 2**24
"""Limit on token ids: an embedding has a row for every id up to the largest. No published vocabulary comes near."""


@dataclass(frozen=True)
class LegacyTokenizer:
    """A tokenizer read from older files, before the tokens of its configuration are added.

    `roles` are the special tokens of the family by role ("bos_token": …), `tokens` those that the family adds, whose
    flags the configuration may override. `around` builds the post-processor once all tokens have ids.
    """

    backend: Backend
    roles: dict[str, str]
    tokens: list[AddedToken]
    around: Callable[[Backend, dict[str, Any]], processors.PostProcessor | None]


@contextmanager
def refusing(what: str, then: str) -> Iterator[None]:
    """Turn any error of the `tokenizers` library about a user's file into InputError.

    The library raises bare Exception, and panics of its Rust code are BaseException.
    """
    try:
        yield
    except (QuatrainError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise InputError(f"{what}: {' '.join(str(error).split())}. {then}") from error


def all_merges(tokens: Iterable[str], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every split of each token into two tokens of the vocabulary, in the order of `tokens`: the merges of a BPE."""
    return [
        (token[:end], token[end:])
        for token in tokens
        for end in range(len(token) - 1, 0, -1)
        if token[:end] in vocabulary and token[end:] in vocabulary
    ]


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object of a vocabulary file. Raises InputError for anything else."""
    read = reading.read_json(file, Any, max_bytes=MAX_TOKENIZER_BYTES)
    if not isinstance(read, dict):
        raise InputError(f"cannot read {file}: expected a JSON object, found {type(read).__name__}")
    return read
