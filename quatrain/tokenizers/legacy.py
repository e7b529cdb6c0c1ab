"""What the readers of tokenizer files share: a tokenizer in parts, JSON vocabularies, errors of the library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
"""An embedding has a row for each id up to the largest one; no published vocabulary comes near."""


@dataclass(frozen=True)
class LegacyTokenizer:
    """A tokenizer of older files, not yet with the tokens that the configuration adds.

    `roles` are the family's own special tokens by role ("bos_token": …), `tokens` those that it adds, which the
    configuration may describe otherwise; `around` makes what is put around a text once all tokens have their ids.
    """

    backend: Backend
    roles: dict[str, str]
    tokens: list[AddedToken]
    around: Callable[[Backend, dict[str, Any]], processors.PostProcessor | None]


@contextmanager
def refusing(what: str, then: str) -> Iterator[None]:
    """Raise InputError for whatever the `tokenizers` library says of a file of the user's.

    The library raises bare Exception for it, and panics of its Rust part are no Exception at all.
    """
    try:
        yield
    except (QuatrainError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise InputError(f"{what}: {' '.join(str(error).split())}. {then}") from error


def read_json(file: Path) -> dict[str, Any]:
    """The object of a vocabulary's JSON file. Raises InputError for anything else."""
    read = reading.read_json(file, Any, max_bytes=MAX_TOKENIZER_BYTES)
    if not isinstance(read, dict):
        raise InputError(f"cannot read {file}: expected a JSON object, found {type(read).__name__}")
    return read
