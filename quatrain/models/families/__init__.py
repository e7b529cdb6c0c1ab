"""The families that the stack can be: each a config mapping and a list of weight operations, nothing else."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from quatrain.errors import InputError
from quatrain.models.config import ModelConfig
from quatrain.models.families.weights import Operation


@dataclass(frozen=True)
class Family:
    """How one Hugging Face architecture maps to the stack, both ways."""

    name: str
    """Its `model_type` in config.json."""
    architecture: str
    """The transformers class that loads it."""
    from_hf: Callable[[dict[str, Any]], ModelConfig]
    to_hf: Callable[[ModelConfig], dict[str, Any]]
    operations: Sequence[Operation]
    prefix: str = ""
    """A prefix of weight names that some of the family's checkpoints leave out."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of weight names that hold no parameter (old buffers)."""


def families() -> dict[str, Family]:
    """Every known family by its `model_type`."""
    from quatrain.models.families import gpt2, llama

    return {family.name: family for family in (llama.FAMILY, gpt2.FAMILY)}


def family(name: str | None) -> Family:
    """The family of a `model_type`. Raises InputError with the known ones, nearest first."""
    known = families()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(str(name), known, len(known), cutoff=0.4)
    ordered = [*near, *(other for other in known if other not in near)]
    raise InputError(
        f"model_type: {name!r} is a family that Quatrain does not know. Known families: {', '.join(ordered)}."
    )


def take(config: dict[str, Any], known: dict[str, Any], harmless: set[str], family_name: str) -> dict[str, Any]:
    """The values of the keys in `known` (with their defaults; `...` where a key is needed) from a config.json.

    Every other key must be harmless or at a value that changes nothing (None, False, empty); an option that
    would change the network is refused by name, never ignored.
    """
    problems = [
        f"{key}: missing; a {family_name} config needs it"
        for key, default in known.items()
        if default is ... and config.get(key) is None
    ]
    for key, value in config.items():
        if key in known or key in harmless or key in COMMON or value in (None, False, {}, []):
            continue
        problems.append(f"{key}: {value!r} is an option of {family_name} that Quatrain does not know")
    if problems:
        raise InputError(f"This {family_name} config.json cannot be used:", problems)
    return {key: config[key] if config.get(key) is not None else default for key, default in known.items()}


COMMON = {
    "model_type",
    "architectures",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "tie_word_embeddings",
    "_name_or_path",
    "name_or_path",
    "task_specific_params",
    "is_encoder_decoder",
    "output_hidden_states",
    "output_attentions",
    "return_dict",
    "chunk_size_feed_forward",
    "id2label",
    "label2id",
    "problem_type",
    "attn_implementation",
    "_attn_implementation",
    "pretraining_tp",
    "add_cross_attention",
    "is_decoder",
}
"""Keys of any config.json that do not shape the network, or that every family reads."""


def common_from_hf(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that every family reads the same way."""
    return {
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "initializer_range": float(config.get("initializer_range", 0.02)),
        "bos_token_id": config.get("bos_token_id"),
        "eos_token_id": config.get("eos_token_id"),
        "pad_token_id": config.get("pad_token_id"),
    }


def common_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The keys that every family writes the same way."""
    return {
        "model_type": config.family,
        "architectures": [family(config.family).architecture],
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
