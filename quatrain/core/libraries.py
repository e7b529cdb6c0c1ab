"""Libraries of extras: imported where they are used, with one message that says what needs them and how to get them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from quatrain.core.errors import InputError


@contextmanager
def require(what: str, library: str, extra: str, more: str = "") -> Iterator[None]:
    """Imports inside this context raise InputError where the library is missing: `what` needs it, of an extra.

    with require("BM25", "bm25s", "rag"):
        import bm25s

    `more` ends the message: what works without the library.
    """
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"{what} needs {library}, which is not installed. Install it with: pip install 'quatrain[{extra}]'{more}"
        ) from error
