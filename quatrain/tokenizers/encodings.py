"""What a tokenizer takes and gives: texts that can be encoded, and ends that are there once."""

from __future__ import annotations

from tokenizers import Encoding

from quatrain.core.errors import InputError


def once(encoding: Encoding) -> slice:
    """What to keep of an encoding, so that what a text begins or ends with already is not there twice."""
    added, ids = encoding.special_tokens_mask, encoding.ids
    own = [number for number, special in enumerate(added) if not special]
    if not own:
        return slice(None)
    start, end = own[0], own[-1] + 1
    before, after = ids[:start], ids[end:]
    doubled = bool(before) and ids[start : start + len(before)] == before and not any(added[start : 2 * start])
    # A token is counted once, as the beginning or as the end.
    rest = ids[start + len(before) * doubled : end]
    return slice(start if doubled else 0, end if after and rest[-len(after) :] == after else None)


def is_text(text: object) -> bool:
    """Whether this is a text without lone surrogates, which no tokenizer takes."""
    if not isinstance(text, str):
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def not_text(text: object) -> InputError:
    """The error of something that cannot be tokenized."""
    if not isinstance(text, str):
        return InputError(f"only text can be tokenized, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return InputError(
            f"the text holds half of a character (a lone surrogate, U+{ord(text[error.start]):04X}) at character "
            f"{error.start}; remove it or read the text again with the right encoding"
        )
    return InputError("the text could not be tokenized")


def unknown_characters(unknown: set[str], known: int) -> InputError:
    """The error of characters that a character tokenizer of `known` ones would lose."""
    shown = ", ".join(f"{each!r} (U+{ord(each):04X})" for each in sorted(unknown)[:8])
    return InputError(
        f"characters that this character tokenizer does not know: {shown}. It knows the {known} characters of its "
        "training text; remove them, or train a tokenizer of kind bpe, which takes any text"
    )
