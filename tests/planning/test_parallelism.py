"""ZeRO's published table, LoRA's sums, Korthikanti's formula, and what a layer of every family really saves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.models.families.fresh import fresh_config
from quatrain.models.io.model_folder import config_of
from quatrain.models.transformer.settings import DECODERS, ENCODER_DECODERS, ENCODERS
from quatrain.planning.facts import load_facts
from quatrain.planning.parallelism import (
    Layout,
    Step,
    device_memory,
    largest_micro_batch,
    largest_model,
    layer_activation_bytes,
    state_memory,
)
from quatrain.planning.verify import LIMIT, compare, twin

GB = 1e9


@pytest.mark.parametrize(("zero", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_table_of_zero(zero: int, gigabytes: float) -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5B parameters on 64 devices."""
    assert sum(state_memory(7.5e9, Step(), Layout(data=64, zero=zero))) / GB == pytest.approx(gigabytes, abs=0.05)


def test_training_7b_in_full_and_by_lora() -> None:
    """Float32 gradients 28 GB, AdamW's two moments 56 GB, 16-bit weights 14 GB."""
    _, gradients, moments = state_memory(7e9, Step(precision="float32"), Layout())
    assert (gradients / GB, moments / GB) == (28, 56)
    assert state_memory(7e9, Step(), Layout())[0] / GB == 14


def gpt3(dropout: float = 0.1):
    return config_of(dict(load_facts().models["gpt3"].config)).replace(dropout=dropout)


def test_activations_of_a_layer_of_gpt_3() -> None:
    """Korthikanti et al. 2022, equation 1: s b h (34 + 5 a s / h); equation 2 with tensor parallelism."""
    config, s, b = gpt3(), 2048, 1
    h, a = config.hidden_size, config.num_attention_heads
    step = Step(micro_batch=b, context=s, flash=False)
    assert layer_activation_bytes(config, step) == pytest.approx(s * b * h * (34 + 5 * a * s / h))
    t = 8
    expected = s * b * h * (10 + 24 / t + 5 * a * s / (h * t))
    assert layer_activation_bytes(config, step, t, sequence_parallel=False) == pytest.approx(expected)
    assert layer_activation_bytes(config, step, t) == pytest.approx(s * b * h * (34 + 5 * a * s / h) / t)
    full = Step(micro_batch=b, context=s, checkpointing="full")
    assert layer_activation_bytes(config, full) == 2 * s * b * h
    selective = Step(micro_batch=b, context=s, flash=False, checkpointing="selective")
    assert layer_activation_bytes(config, selective) == pytest.approx(s * b * h * 34)


SIZES = {
    "vocab_size": 30_000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 1024,
}  # fmt: skip
FAMILIES = sorted({*DECODERS, *ENCODERS, *ENCODER_DECODERS})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_formulas_equal_what_a_small_model_holds(family: str) -> None:
    config = fresh_config(family, SIZES)
    rows = {row.name: row for row in compare(config)}
    exact = ("parameters", "bytes of weights", "bytes of AdamW's states", "bytes of the KV cache",
             "FLOPs of a forward pass", "FLOPs of a training step")  # fmt: skip
    if "gated_delta" in config.layer_types:  # The counter sees the backward pass of its triangular systems only.
        exact = exact[:-1]
    assert all(rows[name].error == 0 for name in exact if name in rows), rows
    if "bytes that a layer saves" in rows:
        assert abs(rows["bytes that a layer saves"].error) < (LIMIT if config.recurs else 0.005)
    assert all(abs(row.error) <= LIMIT for row in rows.values())


def test_a_twin_keeps_the_choices() -> None:
    config = config_of(dict(load_facts().models["gemma-3-1b"].config))
    small = twin(config)
    assert small.layer_types == config.layer_types[:6]  # a whole period of five sliding layers and a full one
    assert (small.norm_position, small.query_key_norm, small.feed_forward) == ("sandwich", "head", "gated")
    assert small.num_attention_heads // small.num_key_value_heads == 4


@given(st.integers(1, 4), st.integers(0, 3), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]))
def test_more_sharding_never_needs_more(power: int, zero: int, tensor: int, pipeline: int) -> None:
    step, data = Step(), 2**power
    base = sum(state_memory(1e9, step, Layout(data, tensor, pipeline, zero)))
    assert base <= sum(state_memory(1e9, step, Layout(data, 1, 1, zero)))
    if zero:
        assert base <= sum(state_memory(1e9, step, Layout(data, tensor, pipeline, zero - 1)))
        grouped = Layout(data, tensor, pipeline, zero, shard_group=2)
        assert sum(state_memory(1e9, step, grouped)) >= base


def test_what_fits_fits_and_one_more_does_not() -> None:
    config = config_of(dict(load_facts().models["llama-3.1-8b"].config))
    step, layout = Step(context=2048), Layout(data=8, zero=3)
    batch = largest_micro_batch(config, step, layout, 80 * GB)
    assert batch >= 1

    def total(size: int) -> float:
        return device_memory(config, Step(context=2048, micro_batch=size), layout).total

    assert total(batch) <= 80 * GB < total(batch + 1)
    assert largest_micro_batch(config, step, Layout(), 80 * GB) == 0
    largest = largest_model(80 * GB, step)
    assert sum(state_memory(largest, step, Layout())) == pytest.approx(64 * GB)
    assert largest_model(80 * GB, Step(offload=True)) == pytest.approx(16 * GB)


def test_offloaded_states_are_in_host_memory() -> None:
    config = config_of(dict(load_facts().models["gpt2"].config))
    here, there = (device_memory(config, Step(context=1024, offload=offload)) for offload in (False, True))
    assert there.optimizer == 0 and there.host == here.optimizer
    assert here.total - there.total == here.optimizer


def test_impossible_plans_are_refused_all_problems_at_once() -> None:
    config = config_of(dict(load_facts().models["gpt2"].config))
    with pytest.raises(InputError) as caught:
        Layout(data=0, tensor=-1, zero=4)
    assert len(caught.value.problems) == 3
    with pytest.raises(InputError, match="must divide the data-parallel devices"):
        Layout(data=8, zero=3, shard_group=3)
    with pytest.raises(InputError, match="nothing is sharded"):
        Layout(data=8, shard_group=2)
    with pytest.raises(InputError) as caught:
        device_memory(config, Step(context=1024), Layout(tensor=5, pipeline=13))
    assert len(caught.value.problems) == 3  # heads, feed-forward width, layers
    with pytest.raises(InputError, match="at most the model's longest, 1,024"):
        device_memory(config, Step(context=4096))
    with pytest.raises(InputError) as caught:
        Step(micro_batch=0, context=0, precision="int8", optimizer="lion")
    assert len(caught.value.problems) == 4
