"""The tokens of a text as a model meets them, each written so that nothing of it stays hidden."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from quatrain.core.errors import InputError
from quatrain.core.reading import shown
from quatrain.models.transformer.config import ModelConfig
from quatrain.tokenizers.fit import check_fits

if TYPE_CHECKING:
    from quatrain.tokenizers.tokenizer import Tokenizer

SPACE = "␣"


@dataclass(frozen=True)
class Token:
    """One token: its place, its id, what it stands for, how the vocabulary writes it, and whether it is special.

    Bytes that are no whole character are written <0xE2> in `text`.
    """

    position: int
    id: int
    text: str
    written: str
    special: bool

    @property
    def shown(self) -> str:
        """The text with spaces as ␣ and what cannot be printed as an escape."""
        return visible(self.text)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(self.__dict__)


def visible(text: str) -> str:
    """`text` with nothing hidden: spaces as ␣, controls and invisible characters escaped, a lone accent on a circle."""
    shown = "".join(SPACE if c == " " else c if c.isprintable() else repr(c)[1:-1] for c in text)
    return f"◌{shown}" if shown and unicodedata.combining(shown[0]) else shown


def token(tokenizer: Tokenizer, token_id: int, position: int = 0) -> Token:
    """One id of the vocabulary."""
    written = tokenizer.id_to_token(token_id)
    if written is None:
        return Token(position, token_id, "", f"<no token {token_id}>", False)
    special = token_id in tokenizer.special_ids
    text = written if special else tokenizer.token_text(token_id)
    if "\ufffd" in text and not special:
        text = _bytes_text(written) or text
    return Token(position, token_id, text or written, written, special)


def tokens(tokenizer: Tokenizer, ids: Iterable[int]) -> tuple[Token, ...]:
    """The tokens of some ids, in their places."""
    return tuple(token(tokenizer, token_id, position) for position, token_id in enumerate(ids))


def text_ids(
    tokenizer: Tokenizer,
    text: str,
    config: ModelConfig | None = None,
    *,
    special_tokens: bool = True,
    what: str = "text",
) -> list[int]:
    """All ids of a text as a model meets it: with the special tokens around it, but no end where a decoder could go on.

    Raises InputError for a text without tokens; `what` is how the message calls it.
    """
    if not text:
        raise InputError(f"The {what} is empty: there are no tokens to look at. Give at least one character.")
    ids = tokenizer.encode(text, special_tokens=special_tokens)
    ended = special_tokens and ids[-1:] == [tokenizer.eos_id] != tokenizer.encode(text)[-1:]
    if ended and config is not None and config.architecture == "decoder":
        ids = ids[:-1]
    if not ids:
        raise InputError(f"The {what} {shown(text)} has no tokens: this tokenizer leaves out all of it.")
    return ids


def read_ids(
    tokenizer: Tokenizer,
    text: str,
    config: ModelConfig | None = None,
    *,
    special_tokens: bool = True,
    truncate: bool = False,
    limit: int | None = None,
    what: str = "text",
) -> list[int]:
    """The ids of a text that a model can read: `text_ids`, refused or, with `truncate`, cut where they are too many.

    Given a configuration, its context is the limit; `limit` is another. What is cut keeps the special tokens around it.
    Raises InputError with the counts for a text that is too long, and for ids past the model's vocabulary.
    """
    ids = text_ids(tokenizer, text, config, special_tokens=special_tokens, what=what)
    longest = _longest(config, limit)
    if longest is not None and len(ids) > longest:
        if not truncate:
            raise InputError(
                f"The {what} has {len(ids):,} tokens; at most {longest:,} can be looked at. Shorten it, or cut it with "
                "--truncate."
            )
        ids = _cut(ids, tokenizer.encode(text), longest)
    if config is not None:
        check_ids(ids, tokenizer, config)
    return ids


def check_ids(ids: Sequence[int], tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Raises InputError where a tokenizer gives ids that a model's embedding has no row for.

    Tokens past the vocabulary that a text does not use do no harm: some public models have such.
    """
    if max(ids) >= config.vocab_size:
        check_fits(tokenizer, config.vocab_size)


def _longest(config: ModelConfig | None, limit: int | None) -> int | None:
    endless = config is None or not config.bounded
    context = None if config is None or endless else config.context_length
    known = [length for length in (context, limit) if length is not None]
    return min(known, default=None)


def _cut(ids: list[int], plain: list[int], longest: int) -> list[int]:
    """The first tokens of a text, with what the tokenizer put before and behind it."""
    places = range(len(ids) - len(plain) + 1)
    start = next((place for place in places if plain and ids[place : place + len(plain)] == plain), None)
    if start is None:
        return ids[:longest]
    before, after = ids[:start], ids[start + len(plain) :]
    room = longest - len(before) - len(after)
    return [*before, *plain[:room], *after] if room > 0 else ids[:longest]


def _bytes_text(written: str) -> str | None:
    """A byte-level token in GPT-2's alphabet, with single bytes as <0xE2>; None where it is no such token."""
    known = _byte_alphabet()
    if not all(c in known for c in written):
        return None
    text = bytes(known[c] for c in written).decode("utf-8", "surrogateescape")
    return "".join(f"<0x{ord(c) - 0xDC00:02X}>" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character of each byte: printable ones are themselves, the others come after the 255th."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
