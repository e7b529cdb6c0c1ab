"""The counts equal those of the built model; the estimates stay near what is measured."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import llama

from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.kv_cache import KVCache
from quatrain.models.transformer.stack import Model
from quatrain.planning import counts

LLAMA = llama(vocab_size=300, hidden_size=64, intermediate_size=172, num_hidden_layers=3)


@st.composite
def configs(draw):
    heads = draw(st.sampled_from([1, 2, 4]))
    rotary = draw(st.booleans())
    return ModelConfig(
        family="llama" if rotary else "gpt2",
        vocab_size=draw(st.integers(5, 60)),
        hidden_size=heads * draw(st.sampled_from([2, 6])),
        intermediate_size=draw(st.integers(3, 40)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        num_key_value_heads=draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0])),
        max_position_embeddings=draw(st.integers(4, 20)),
        head_dim=draw(st.sampled_from([0, 4])),
        position="rotary" if rotary else "learned",
        norm="rms" if rotary else "layer",
        feed_forward="gated" if rotary else "plain",
        attention_bias=draw(st.sampled_from(["none", "qkv", "all"])),
        feed_forward_bias=draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
    )


@given(configs())
@settings(max_examples=60, deadline=None)
def test_parameters_equal_the_built_model(config):
    with torch.device("meta"):
        model = Model(config)
    assert counts.parameters(config) == model.num_parameters()


def test_known_models():
    gpt2 = ModelConfig(
        family="gpt2", vocab_size=50257, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
        num_attention_heads=12, num_key_value_heads=12, max_position_embeddings=1024, position="learned", norm="layer",
        feed_forward="plain", attention_bias="all", feed_forward_bias=True, tie_word_embeddings=True,
    )  # fmt: skip
    assert counts.parameters(gpt2) == 124_439_808
    llama_7b = ModelConfig(
        family="llama", vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096,
    )  # fmt: skip
    assert counts.parameters(llama_7b) == 6_738_415_616


@pytest.mark.parametrize("context", [16, 64])
def test_flops_equal_the_counted_ones(context):
    from torch.utils.flop_counter import FlopCounterMode

    model = Model(LLAMA).initialize(0)
    ids = torch.zeros(2, context, dtype=torch.long)

    def measure(training):
        with FlopCounterMode(display=False) as counter:
            loss = model(ids, ids)[1].sum()
            if training:
                loss.backward()
        return counter.get_total_flops() / ids.numel()

    for training in (False, True):
        assert measure(training) == counts.flops_per_token(LLAMA, context, training)


def test_a_window_leaves_out_what_a_mask_computes():
    """Six of eight layers of a window of 32 in a text of 128: a quarter of their scores."""
    from quatrain.models.transformer.config import ModelConfig

    kinds = ("sliding", "sliding", "sliding", "full") * 2
    config = ModelConfig(**{**vars(LLAMA), "num_hidden_layers": 8, "layer_types": kinds, "sliding_window": 32})
    width = config.num_attention_heads * config.head_dim
    exact, masked = (counts.flops_per_token(config, 128, training=False, windows=each) for each in (True, False))
    assert masked - exact == 4 * width * 6 * (128 - 32)


def test_a_frozen_base_costs_two_thirds():
    whole = counts.flops_per_token(LLAMA, 0)
    assert counts.flops_per_token(LLAMA, 0, frozen=True) == pytest.approx(whole * 2 / 3)


def test_cache_bytes_equal_the_built_cache():
    cache = KVCache(LLAMA, 3, 10)
    built = sum(tensor.nbytes for tensor in (*cache.keys, *cache.values))
    assert counts.kv_cache_bytes(LLAMA, 10, 3) == built
    assert counts.kv_cache_bytes(LLAMA, 10, 3, "bfloat16") == built // 2
