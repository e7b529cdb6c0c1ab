"""A model's own generation settings: constraints that always apply, and the sampling parameters its makers recommend.

They are read from `generation_config.json`, or in older checkpoints from `config.json`. Names and meaning are those of
transformers' GenerationConfig. A setting that would change the ids and is not supported is refused by name; a test
compares the keys with transformers', so that keys of a new release are noticed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value, type_name
from quatrain.generation.constraints import GenerationRules
from quatrain.generation.params import MIN_REPETITION_PENALTY, SamplingParams
from quatrain.generation.runner import has_encoder
from quatrain.models.transformer.stack import Model

REFUSED = "This model's generation_config.json (or config.json) has settings that are not supported:"

_CACHES = ("dynamic", "static", "hybrid", "sliding_window", "offloaded", "offloaded_static")
UNKNOWN: dict[str, tuple[tuple[Any, ...], str]] = {
    "constraints": (([],), "Python objects of transformers 4; force_words_ids asks for the same"),
    "watermarking_config": ((), "shifts probabilities to mark the text"),
    "dola_layers": ((), "decoding by contrast with earlier layers"),
    "remove_invalid_values": ((False,), "would hide broken weights"),
    "token_healing": ((False,), "rewrites the end of the prompt"),
    "max_time": ((), "the ids would depend on the machine's speed; use max_new_tokens"),
    "cache_implementation": (_CACHES, "a quantized cache changes the ids"),
    "cache_config": (({},), "settings of a quantized cache"),
}
"""Settings that change the ids in transformers and are not supported: the values that have no effect (or null), and
what the setting does.
"""

_SAME_IDS = "makes transformers faster or smaller; the ids are the same"
_RETURNED = "what transformers' generate returns besides the ids"
_ASSISTED = "assisted decoding, by a second model or from the prompt, gives the same ids"
HARMLESS: dict[str, str] = {
    **dict.fromkeys(("use_cache", "max_cache_len", "compile_config", "disable_compile", "low_memory"), _SAME_IDS),
    **dict.fromkeys(("prefill_chunk_size", "continuous_batching_config"), _SAME_IDS),
    **dict.fromkeys(("output_attentions", "output_hidden_states", "output_scores", "output_logits"), _RETURNED),
    "return_dict_in_generate": _RETURNED,
    **dict.fromkeys(("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"), _ASSISTED),
    **dict.fromkeys(
        ("assistant_confidence_threshold", "prompt_lookup_num_tokens", "max_matching_ngram_size"), _ASSISTED
    ),
    **dict.fromkeys(("assistant_early_exit", "assistant_lookbehind", "target_lookbehind"), _ASSISTED),
    **dict.fromkeys(("assistant_ensemble_weight", "speculation_type", "use_mtp"), _ASSISTED),
    "pad_token_id": "finished rows leave the batch, so none is padded",
    "_from_model_config": "who wrote the file",
    "transformers_version": "who wrote the file",
}
"""Settings that do not change the ids, and why."""

RECOMMENDED = (
    *("num_beams", "length_penalty", "early_stopping", "max_new_tokens", "num_return_sequences", "num_beam_groups"),
    *("diversity_penalty", "penalty_alpha", "guidance_scale"),
)
SAMPLED = (
    *("temperature", "top_k", "top_p", "min_p", "max_new_tokens", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"),
    *("num_return_sequences", "guidance_scale"),
)
"""The recommended parameters that apply without `do_sample`, and with it."""
LEGACY_TOP_K = 50
"""The `top_k` of transformers 4 for files that name none; contrastive search reads it."""


@dataclass(frozen=True)
class GenerationConfig:
    """Generation settings from a model's files."""

    rules: GenerationRules = field(default_factory=GenerationRules)
    recommended: SamplingParams = field(default_factory=SamplingParams)
    """The parameters of calls that give none."""
    max_length: int | None = None
    """The most tokens of prompt and completion together, for a decoder and calls without parameters."""
    bos_token_id: int | None = None
    """The token of an empty prompt, unless the tokenizer has one."""


def read_generation_config(model: Model) -> GenerationConfig:
    """The generation settings of a model's files.

    Raises InputError, all problems at once, for values out of range and settings that are not supported.
    """
    config = model.config
    raw: Mapping[str, Any] = config.extra if model.generation_config is None else model.generation_config
    problems = list(_unknown(raw))
    values: dict[str, Any] = {}
    for name, (convert, wanted) in RULES.items():
        value = raw.get(name)
        if value is None and name == "decoder_start_token_id":
            value = config.decoder_start_token_id
        if value is None:
            continue
        try:
            values[name] = convert(value)
        except (TypeError, ValueError, OverflowError):
            problems.append(f"{name}: {format_value(value)}; must be {wanted}")
            continue
        if (
            wanted.endswith(("token id", "of them", "token ids", "a number"))
            and name != "exponential_decay_length_penalty"
        ):
            problems += [
                f"{name}: token {token} is not in the model's vocabulary of {config.vocab_size}"
                for token in sorted(set(_flat(values[name])))
                if token >= config.vocab_size
            ]
    for name in ("eos_token_id", "pad_token_id", "bos_token_id"):
        problems += _end_problems(name, raw.get(name))
    bos = raw.get("bos_token_id")
    bos = config.bos_token_id if not _is_count(bos) else bos
    if values.get("decoder_start_token_id") is None and bos is not None:
        values["decoder_start_token_id"] = bos
    recommended = _recommended(raw, problems, encoder_decoder=has_encoder(config))
    if problems:
        raise InputError(REFUSED, problems)
    length = None if has_encoder(config) or raw.get("max_new_tokens") is not None else raw.get("max_length")
    return GenerationConfig(GenerationRules(**values), recommended, length, bos)


def _unknown(raw: Mapping[str, Any]) -> Iterator[str]:
    """Settings that are not supported, and values of the wrong type."""
    for name, (neutral, what) in UNKNOWN.items():
        value = raw.get(name)
        if value is not None and not any(
            value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral
        ):
            yield f"{name}: {format_value(value)}; not supported ({what}); remove it to generate without it"
    sampled = raw.get("do_sample")
    if sampled is not None and not isinstance(sampled, bool):
        yield f"do_sample: {format_value(sampled)}; must be true or false"
    beams = raw.get("num_beams")
    if sampled and beams is not None and beams != 1:
        yield f"num_beams: {format_value(beams)}; not supported together with do_sample; remove one of them"


def _recommended(raw: Mapping[str, Any], problems: list[str], *, encoder_decoder: bool) -> SamplingParams:
    sampled = raw.get("do_sample") is True
    values = {name: raw[name] for name in (SAMPLED if sampled else RECOMMENDED) if raw.get(name) is not None}
    length = raw.get("max_length")
    if not sampled and values.get("penalty_alpha"):
        values["top_k"] = raw.get("top_k") or LEGACY_TOP_K
    if not sampled and raw.get("force_words_ids"):
        values["force_words"] = raw["force_words_ids"]
    if sampled:
        values.setdefault("temperature", 1.0)
        values["top_k"] = None if values.get("top_k") == 0 else values.get("top_k")
    if length is not None and not _is_count(length):
        problems.append(f"max_length: {format_value(length)}; must be a whole number of at least 1")
    elif length is not None and encoder_decoder:
        # The decoder's start token counts in max_length.
        values.setdefault("max_new_tokens", max(length - 1, 1))
    try:
        return SamplingParams(**values)
    except InputError as error:
        known = {problem.partition(":")[0] for problem in problems}
        told = [problem.replace("force_words:", "force_words_ids:", 1) for problem in error.problems]
        problems += [problem for problem in told if problem.partition(":")[0] not in known]
    return SamplingParams()


def _end_problems(name: str, value: Any) -> Iterator[str]:
    """Problems of an id setting; ids beyond the vocabulary are allowed, since they are never generated."""
    listed = value if isinstance(value, list) and name == "eos_token_id" else [value]
    for token in listed:
        # Some checkpoints write -1 for "none".
        if token is not None and not _is_count(token) and not (token == -1 and not isinstance(token, bool | float)):
            yield f"{name}: {format_value(token)}; must be a token id" + (
                " or a list of them" if name == "eos_token_id" else ""
            )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _count(value: Any) -> int:
    if not _is_count(value):
        raise ValueError(value)
    return int(value)


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(_count(token) for token in (value if isinstance(value, list | tuple) else [value]))


def _sequences(value: Any) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, list | tuple) or any(not isinstance(words, list | tuple) or not words for words in value):
        raise ValueError(value)
    return tuple(_ids(words) for words in value)


def _biases(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """Pairs of a sequence and a bias; the last bias of a sequence counts, as in transformers' dict."""
    if not isinstance(value, list | tuple):
        raise ValueError(value)
    found: dict[tuple[int, ...], float] = {}
    for sequence, bias in value:
        if not isinstance(sequence, list | tuple) or not sequence:
            raise ValueError(value)
        found[_ids(sequence)] = _finite(bias)
    return tuple(found.items())


def _decay(value: Any) -> tuple[int, float]:
    start, factor = value
    factor = _finite(factor)
    if not 0 < factor <= 1000:
        raise ValueError(value)
    return _count(start), factor


def _flat(value: Any) -> Iterator[int]:
    if isinstance(value, tuple):
        for part in value:
            yield from _flat(part)
    elif isinstance(value, int):
        yield value


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(value)
    return float(value)


def _penalty(value: Any) -> float:
    if not MIN_REPETITION_PENALTY <= _finite(value) <= 1 / MIN_REPETITION_PENALTY:
        raise ValueError(value)
    return float(value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


def _strings(value: Any) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or any(not isinstance(text, str) or not text for text in listed):
        raise ValueError(type_name(value))
    return tuple(listed)


_COUNT = "a whole number of at least 0"
RULES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "decoder_start_token_id": (_count, "a token id"),
    "forced_bos_token_id": (_count, "a token id"),
    "forced_eos_token_id": (_ids, "a token id or a list of them"),
    "sequence_bias": (_biases, "a list of pairs, each of a list of token ids and a number"),
    "bad_words_ids": (_sequences, "a list of lists of token ids"),
    "suppress_tokens": (_ids, "a list of token ids"),
    "begin_suppress_tokens": (_ids, "a list of token ids"),
    "min_length": (_count, _COUNT),
    "min_new_tokens": (_count, _COUNT),
    "no_repeat_ngram_size": (_count, _COUNT),
    "repetition_penalty": (
        _penalty,
        f"a positive number from {MIN_REPETITION_PENALTY:g} to {1 / MIN_REPETITION_PENALTY:g}",
    ),
    "encoder_repetition_penalty": (
        _penalty,
        f"a positive number from {MIN_REPETITION_PENALTY:g} to {1 / MIN_REPETITION_PENALTY:g}",
    ),
    "encoder_no_repeat_ngram_size": (_count, _COUNT),
    "exponential_decay_length_penalty": (_decay, "a pair of a whole number and a factor above 0 and at most 1000"),
    "renormalize_logits": (_switch, "true or false"),
    "stop_strings": (_strings, "a text or a list of texts, none of them empty"),
}
"""How each constraint is parsed, and what its value must be."""
