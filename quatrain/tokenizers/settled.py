"""Which part of a growing text is settled: what further tokens can no longer change.

Byte tokens of SentencePiece's kind become characters only once a run of them ends, and a clean-up of spaces looks a few
characters ahead. A stream that shows what is not settled would have to take it back.
"""

from __future__ import annotations

import re

_BYTE = re.compile(r"<0x(?:[0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")
_CLEANED = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'")),
    *((" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)
"""What transformers' `clean_up_tokenization` replaces, in its order."""
_LOOKS_BACK = max(len(before) for before, _ in _CLEANED) - 1


def is_byte_token(token: str) -> bool:
    """Whether a token's written form is that of one byte, "<0xE6>", as `tokenizers` takes it."""
    return _BYTE.fullmatch(token) is not None


def cleaned_up(text: str) -> str:
    """A text without the spaces before punctuation and English contractions, as transformers cleans it up."""
    for before, after in _CLEANED:
        text = text.replace(before, after)
    return text


def cleaned_beginning(text: str) -> str:
    """What `cleaned_up` makes of every text that begins with this one: its clean beginning.

    Each replacement begins with a space; one that is further back than the longest of them is in no open replacement.
    """
    end = len(text)
    while end and " " in text[max(end - _LOOKS_BACK, 0) : end]:
        end -= 1
    return cleaned_up(text[:end])
