"""Wrong values at every key of every family's config.json: each is refused by name, or the model works."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from quick_set import some
from tiny_configs import tiny

from quatrain.core.errors import InputError
from quatrain.models.families import families
from quatrain.models.families.mapping import COMMON
from quatrain.models.families.value_types import FIELDS, READ
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.stack import Model

ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1,
     "truncate": True, "mscale": 1.0, "mscale_all_dim": 1.0, "attention_factor": 1.0},
    {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 16},
    {"rope_type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [1.0, 2.0], "factor": 2.0,
     "original_max_position_embeddings": 16},
)  # fmt: skip

WRONG: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 7, 10**30, 2**63, 1e30, 0.5, 1e-320, -0.0, math.nan, math.inf, -math.inf, "", "64",
    "relu",
    "x" * 500, "\x1b[2J", [], [1], ["full_attention"], [None], [[1, 2]], {}, {"a": 1}, {"0": {"1": []}}, {"1": "b"},
)  # fmt: skip


WHOLE = ["bert", "gpt2", "llama", "t5"]
EVERY = pytest.mark.parametrize("name", some(sorted(families()), WHOLE))

SEEN: set[str] = set()
"""Configurations that were run."""


def is_small(config: ModelConfig) -> bool:
    """Whether a model has well under a million weights, counted roughly: thousands of configurations are asked."""
    width = config.hidden_size + config.embedding_size
    heads = max(config.num_attention_heads, config.num_key_value_heads, config.full_key_value_heads)
    attention = 4 * width * heads * max(config.head_dim, config.full_head_dim)
    layers = config.num_hidden_layers + config.num_encoder_layers
    rows = config.vocab_size + config.max_position_embeddings + config.position_offset + config.type_vocab_size
    inner = max(config.intermediate_size, config.encoder_intermediate_size, config.shared_kv_intermediate_size)
    rows += layers * config.layer_embedding_size * (1 + config.layer_vocab_size // width)
    return layers * (attention + 3 * width * inner) + rows * width + config.relative_buckets < 400_000


def settle(config: dict[str, Any], head: str | None = None) -> ModelConfig | None:
    """The model of a config.json, run once where it is small; None where it is refused."""
    kind = families()[config["model_type"]]
    try:
        found = kind.from_hf(config, head=head)
    except InputError as error:
        assert len(str(error)) < 20_000
        assert "\x1b" not in str(error)
        return None
    kind.to_hf(found)
    if repr(found) not in SEEN and is_small(found):
        SEEN.add(repr(found))
        model = Model(found).initialize(0).eval()
        length = 1 if found.has_position_limit and found.context_length < 3 else 3
        ids = torch.full((1, length), found.vocab_size - 1)
        said = ids if found.architecture == "encoder-decoder" else None
        if found.pooling == "eos" and found.head == "sequence_classification":
            return found  # reads the end token of a text
        tower = found if found.image_tower is None else found.image_tower
        if (frontend := tower.frontend) is not None:
            text = None if tower is found else torch.full((1, 1), model.config.eos_token_id)
            if found.architecture == "decoder" and tower is found:
                text = torch.full((1, frontend.num_vectors), frontend.token_id)
            with torch.inference_mode():
                model(text, features=torch.zeros(1, *frontend.input_shape), decoder_input_ids=said)
            return found
        with torch.inference_mode():
            model(ids[:, None] if found.head == "multiple_choice" else ids, decoder_input_ids=said)
    return found


@EVERY
def test_a_wrong_value_at_any_key_is_refused_or_works(name: str) -> None:
    kind = families()[name]
    assert settle(tiny(name)) is not None
    keys = {key.theirs for key in kind.keys} | set(kind.reads) | set(kind.required) | COMMON - {"model_type"}
    for key in sorted(keys):
        for value in WRONG:
            try:
                settle(tiny(name) | {key: value})
            except Exception as error:
                raise AssertionError(f"{key} = {value!r}") from error


@EVERY
def test_a_wrong_value_at_any_rotary_key_is_refused_or_works(name: str) -> None:
    """Families share what reads these keys: all but a few try a third of the values at each, others at another key."""
    kind = families()[name]
    if not {"rope_scaling", "rope_parameters"} & set(kind.reads):
        return
    turn = 0
    for rope in ROPES:
        for where in ("rope_scaling", "rope_parameters"):
            if where not in kind.reads:
                continue
            for key in (*rope, "rope_theta", "partial_rotary_factor", "type", "new"):
                turn += 1
                for value in WRONG if name in WHOLE else WRONG[(turn + len(name)) % 3 :: 3]:
                    table = rope | {key: value}
                    layered = {"full_attention": table, "sliding_attention": {"rope_type": "default"}}
                    for given in (table, layered, {"full_attention": value}):
                        try:
                            settle(tiny(name) | {where: given})
                        except Exception as error:
                            raise AssertionError(f"{where}.{key} = {value!r}, {rope['rope_type']}") from error


@EVERY
def test_a_wrong_value_under_any_head_is_refused_or_works(name: str) -> None:
    kind = families()[name]
    for head in kind.heads:
        for key in ("id2label", "num_labels", "problem_type", "architectures", "pad_token_id", "classifier_pooling"):
            for value in WRONG:
                try:
                    settle(tiny(name) | {key: value}, head)
                except Exception as error:
                    raise AssertionError(f"{head}: {key} = {value!r}") from error


@pytest.mark.parametrize("value", [None, 5, True, [], ["llama"], {}, "lama", "x" * 1000, math.nan])
def test_a_wrong_family_is_refused(value: Any) -> None:
    from quatrain.models.families import get_family

    with pytest.raises(InputError, match="model_type"):
        get_family(value)


@pytest.mark.parametrize("name", sorted(families()))
def test_every_key_that_is_read_has_a_type(name: str) -> None:
    kind = families()[name]
    assert all(key.ours in FIELDS for key in kind.keys)
    assert set(kind.reads) <= set(READ)


def test_all_wrong_types_come_at_once() -> None:
    with pytest.raises(InputError) as caught:
        settle_strict(tiny("llama") | {"hidden_size": "8", "rms_norm_eps": [], "rope_theta": None, "mlp_bias": 1})
    named = {line.partition(":")[0] for line in caught.value.problems}
    assert named == {"hidden_size", "rms_norm_eps", "mlp_bias"}


def settle_strict(config: dict[str, Any]) -> ModelConfig:
    return families()[config["model_type"]].from_hf(config)
