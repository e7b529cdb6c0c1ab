"""A model's own generation settings: the rules it always needs, and the way of decoding that its makers recommend.

They stand in `generation_config.json`, or among older checkpoints in `config.json` itself. Names and meaning are those
of transformers' GenerationConfig. A setting that would change the ids and is not known here is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from quatrain.errors import InputError
from quatrain.generation.constraints import Rules
from quatrain.generation.logits import SamplingParams
from quatrain.generation.reader import encodes
from quatrain.models.stack import Model

REFUSED = "This model's generation_config.json (or config.json) asks for what cannot be generated:"

UNKNOWN = {
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1, 1.0),
    "exponential_decay_length_penalty": (),
    "sequence_bias": (),
    "guidance_scale": (1, 1.0),
    "penalty_alpha": (0, 0.0),
    "num_beam_groups": (1,),
    "diversity_penalty": (0, 0.0),
    "constraints": (),
    "force_words_ids": (),
    "watermarking_config": (),
    "dola_layers": (),
    "remove_invalid_values": (False,),
}
"""What changes the ids in transformers and is not offered here, with the values that change nothing (null too)."""
UNKNOWN_WARPERS = {
    "typical_p": (1, 1.0),
    "epsilon_cutoff": (0, 0.0),
    "eta_cutoff": (0, 0.0),
    "top_h": (),
    "num_beams": (1,),
}
"""The same where tokens are drawn; beams that draw are among them."""


@dataclass(frozen=True)
class Settings:
    """What a model's files say about generating with it."""

    rules: Rules = field(default_factory=Rules)
    recommended: SamplingParams = field(default_factory=SamplingParams)
    """What is used where no parameters are given."""


def read_settings(model: Model) -> Settings:
    """The settings that a model brought along from its files.

    Raises InputError, all problems at once, for values out of range and for settings that are not offered here.
    """
    config = model.config
    raw: Mapping[str, Any] = config.extra if model.generation is None else model.generation
    unknown = UNKNOWN | UNKNOWN_WARPERS if raw.get("do_sample") else UNKNOWN
    problems = [
        f"{name}: {raw[name]!r}; not offered here; take it out to generate without it"
        for name, neutral in unknown.items()
        if raw.get(name) is not None and raw[name] not in neutral
    ]
    values: dict[str, Any] = {}
    for name, (convert, _) in RULES.items():
        value = raw.get(name)
        if value is None and name == "decoder_start_token_id":
            value = config.decoder_start_token_id
        if value is None:
            continue
        try:
            values[name] = convert(value)
        except (TypeError, ValueError):
            problems.append(f"{name}: {value!r}; must be {RULES[name][1]}")
            continue
        if RULES[name][1].endswith(("token id", "of them", "token ids")):
            problems += [
                f"{name}: token {token} is not in the model's vocabulary of {config.vocab_size}"
                for token in sorted(set(_flat(values[name])))
                if token >= config.vocab_size
            ]
    if values.get("decoder_start_token_id") is None and config.bos_token_id is not None:
        values["decoder_start_token_id"] = config.bos_token_id
    if problems:
        raise InputError(REFUSED, problems)
    return Settings(Rules(**values), _recommended(raw, encoder_decoder=encodes(config)))


def _recommended(raw: Mapping[str, Any], *, encoder_decoder: bool) -> SamplingParams:
    names = ["num_beams", "length_penalty", "early_stopping", "max_new_tokens"]
    if raw.get("do_sample"):
        names = ["temperature", "top_k", "top_p", "min_p", "max_new_tokens"]
    values = {name: raw[name] for name in names if raw.get(name) is not None}
    if raw.get("do_sample"):
        values.setdefault("temperature", 1.0)
        values["top_k"] = values.get("top_k") or None
    elif encoder_decoder and raw.get("max_length") is not None:
        # The decoder's start token counts in max_length.
        values.setdefault("max_new_tokens", max(raw["max_length"] - 1, 1))
    try:
        return SamplingParams(**values)
    except InputError as error:
        raise InputError(REFUSED, error.problems) from error


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(value)
    return value


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(_count(token) for token in (value if isinstance(value, list | tuple) else [value]))


def _sequences(value: Any) -> tuple[tuple[int, ...], ...]:
    if any(not isinstance(words, list | tuple) or not words for words in value):
        raise ValueError(value)
    return tuple(_ids(words) for words in value)


def _flat(value: Any) -> Iterator[int]:
    if isinstance(value, tuple):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not 0 < value < float("inf"):
        raise ValueError(value)
    return float(value)


RULES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "decoder_start_token_id": (_count, "a token id"),
    "forced_bos_token_id": (_count, "a token id"),
    "forced_eos_token_id": (_ids, "a token id or a list of them"),
    "bad_words_ids": (_sequences, "a list of lists of token ids"),
    "suppress_tokens": (_ids, "a list of token ids"),
    "begin_suppress_tokens": (_ids, "a list of token ids"),
    "min_length": (_count, "a whole number of at least 0"),
    "min_new_tokens": (_count, "a whole number of at least 0"),
    "no_repeat_ngram_size": (_count, "a whole number of at least 0"),
    "repetition_penalty": (_positive, "a positive number"),
    "renormalize_logits": (bool, "true or false"),
}
"""How each rule is read, and what it must be."""
