"""The tokens of a text as the model reads them, written so that invisible characters are visible."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.transformer.config import ModelConfig
from quatrain.tokenizers.fit import check_fits

if TYPE_CHECKING:
    from quatrain.tokenizers.tokenizer import Tokenizer

SPACE = "␣"


@dataclass(frozen=True)
class Token:
    """One token: its position, id, text, spelling in the vocabulary, and whether it is special.

    In `text`, bytes of partial characters are written as <0xE2>.
    """

    position: int
    id: int
    text: str
    written: str
    special: bool

    @property
    def shown(self) -> str:
        """The text with spaces as ␣ and unprintable characters escaped."""
        return visible(self.text)

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


def visible(text: str) -> str:
    """`text` with spaces as ␣, control and invisible characters escaped, and lone accents on a circle."""
    shown = "".join(SPACE if c == " " else c if c.isprintable() else repr(c)[1:-1] for c in text)
    return f"◌{shown}" if shown and unicodedata.combining(shown[0]) else shown


def token(tokenizer: Tokenizer, token_id: int, position: int = 0) -> Token:
    """The token of an id."""
    written = tokenizer.id_to_token(token_id)
    if written is None:
        return Token(position, token_id, "", f"<no token {token_id}>", False)
    special = token_id in tokenizer.special_ids
    text = written if special else tokenizer.token_text(token_id)
    if "\ufffd" in text and not special:
        text = _bytes_text(written) or text
    return Token(position, token_id, text or written, written, special)


def tokens(tokenizer: Tokenizer, ids: Iterable[int]) -> tuple[Token, ...]:
    """The tokens of these ids, with their positions."""
    return tuple(token(tokenizer, token_id, position) for position, token_id in enumerate(ids))


def text_ids(
    tokenizer: Tokenizer,
    text: str,
    config: ModelConfig | None = None,
    *,
    special_tokens: bool = True,
    what: str = "text",
) -> list[int]:
    """All ids of a text as the model reads it: with special tokens, but without an end token for a decoder.

    Raises InputError for a text without tokens; `what` names it in the message.
    """
    if not text:
        raise InputError(f"The {what} is empty: there are no tokens to inspect. Give at least one character.")
    ids = tokenizer.encode(text, special_tokens=special_tokens)
    ended = special_tokens and ids[-1:] == [tokenizer.eos_id] != tokenizer.encode(text)[-1:]
    if ended and config is not None and config.architecture == "decoder":
        ids = ids[:-1]
    if not ids:
        raise InputError(f"The {what} {format_value(text)} has no tokens in this tokenizer.")
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
    """The ids of a text (`text_ids`), checked against the model's longest input; `truncate` cuts longer texts.

    The limits are the configuration's context and `limit`. A cut text keeps its special tokens. Raises InputError for a
    text that is too long, and for ids outside the model's vocabulary.
    """
    ids = text_ids(tokenizer, text, config, special_tokens=special_tokens, what=what)
    longest = _longest(config, limit)
    if longest is not None and len(ids) > longest:
        if not truncate:
            raise InputError(
                f"The {what} has {len(ids):,} tokens; at most {longest:,} can be inspected. Shorten it, or cut it with "
                "--truncate."
            )
        ids = _cut(ids, tokenizer.encode(text), longest)
    if config is not None:
        check_ids(ids, tokenizer, config)
    return ids


def check_ids(ids: Sequence[int], tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Raises InputError if a tokenizer gives ids outside the model's embedding.

    Tokens outside the vocabulary are allowed if the text does not use them; some public models have such tokens.
    """
    if max(ids) >= config.vocab_size:
        check_fits(tokenizer, config.vocab_size)


def _longest(config: ModelConfig | None, limit: int | None) -> int | None:
    limited = config is not None and config.has_position_limit
    context = config.context_length if config is not None and limited else None
    known = [length for length in (context, limit) if length is not None]
    return min(known, default=None)


def _cut(ids: list[int], plain: list[int], longest: int) -> list[int]:
    """The first tokens of a text, with the special tokens before and after it."""
    places = range(len(ids) - len(plain) + 1)
    start = next((place for place in places if plain and ids[place : place + len(plain)] == plain), None)
    if start is None:
        return ids[:longest]
    before, after = ids[:start], ids[start + len(plain) :]
    room = longest - len(before) - len(after)
    return [*before, *plain[:room], *after] if room > 0 else ids[:longest]


def _bytes_text(written: str) -> str | None:
    """The text of a byte-level token in GPT-2's alphabet, partial characters as <0xE2>; None for other tokens."""
    known = _byte_alphabet()
    if not all(c in known for c in written):
        return None
    text = bytes(known[c] for c in written).decode("utf-8", "surrogateescape")
    return "".join(f"<0x{ord(c) - 0xDC00:02X}>" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character of each byte: printable bytes stay, the others are mapped beyond 255."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
