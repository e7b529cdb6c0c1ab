"""llama.cpp's architectures: how the metadata and the tensors of a GGUF file map to our configuration and weights.

An `Architecture` says the names of the tensors (reversible operations, as a family's), the keys of the metadata, and
what llama.cpp cannot compute. Its constants are llama.cpp's: where its code fixes a number (Gemma 2 has a full layer
after each sliding one), a configuration with another number is refused, because the file could not express it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.gguf.architecture import Architecture
from quatrain.models.gguf.decoders import DECODERS
from quatrain.models.gguf.encoders import ENCODERS
from quatrain.models.gguf.mixtures import MIXTURES
from quatrain.models.gguf.recurrent import RECURRENT

ARCHITECTURES = (*DECODERS, *MIXTURES, *RECURRENT, *ENCODERS)
"""What llama.cpp and this package both know."""


LATER = {"gemma4_text": "gemma4"}
"""Families that llama.cpp knows and this package does not write yet, and its names for them."""


@cache
def _by_family() -> dict[str, Architecture]:
    return {family: each for each in ARCHITECTURES for family in each.families}


def architecture_of(family: str) -> Architecture:
    """The architecture of a family. Raises InputError, with the families that have one, for another."""
    if family not in _by_family():
        raise InputError(
            f"{family}: there are no GGUF files of this family here"
            + (f", though llama.cpp has {LATER[family]}" if family in LATER else ", and llama.cpp does not compute it")
            + f"; there are of: {', '.join(_by_family())}. For other programs, use --to hf."
        )
    return _by_family()[family]


def architecture_named(name: Any) -> Architecture:
    """The architecture that a file names. Raises InputError for one that is not known here."""
    found = next((each for each in ARCHITECTURES if each.name == name), None)
    if found is None:
        known = ", ".join(each.name for each in ARCHITECTURES)
        raise InputError(f"general.architecture: {format_value(name)} is not known here; known are {known}.")
    return found
