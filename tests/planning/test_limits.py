"""Sizes that no machine holds are refused in no time, before anything is allocated; estimates still work."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_configs import tiny

from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.settings import AdapterSettings
from quatrain.core.errors import InputError
from quatrain.models.families import families, get_family
from quatrain.models.io import model_folder
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.stack import Model
from quatrain.planning import counts, limits
from quatrain.planning.training_memory import training_memory
from quatrain.training.settings import TrainSettings
from quatrain.training.streams import CopyStream, WindowStream

LARGE: list[dict[str, Any]] = [
    {"hidden_size": 10**9, "num_attention_heads": 10},
    {"vocab_size": 2**31 - 1, "hidden_size": 2**20},
    {"vocab_size": 10**12},
    {"num_hidden_layers": 100_000},
    {"num_hidden_layers": 2_000, "hidden_size": 4096},
    {"intermediate_size": 2**31 - 1},
    {"num_key_value_heads": 2**20, "num_attention_heads": 2**20, "head_dim": 2**10},
]


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    start = time.perf_counter()
    yield
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize("sizes", LARGE, ids=str)
def test_models_that_nothing_holds(sizes: dict[str, Any], tmp_path: Path) -> None:
    model_folder.save(Model(get_family("llama").from_hf(tiny("llama"))).initialize(0), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | sizes))
    with pytest.raises(InputError):
        model_folder.load(tmp_path)
    with pytest.raises(InputError):
        Model(get_family("llama").from_hf(tiny("llama") | sizes))


def test_layers_that_fit_the_memory_and_not_the_files(tmp_path: Path) -> None:
    model_folder.save(Model(get_family("llama").from_hf(tiny("llama"))).initialize(0), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1_900}))
    with pytest.raises(InputError, match=r"num_hidden_layers 1,900.*one of them belongs to another model"):
        model_folder.load(tmp_path)


@pytest.mark.parametrize("name", sorted(families()))
def test_counts_are_those_of_the_built_model(name: str) -> None:
    layers = ("num_hidden_layers", "encoder_layers", "n_layers", "n_layer", "num_layers", "decoder_layers")
    deep = {key: 2 + place for place, key in enumerate(layers) if key in tiny(name)}
    if name in ("t5", "mt5"):
        deep["num_decoder_layers"] = 3
    for head in families()[name].heads:
        # An encoder that has a causal head too says so.
        decodes = {"is_decoder": True} if head == "causal" and "masked" in families()[name].heads else {}
        config = get_family(name).from_hf(tiny(name) | deep | decodes, head=head)
        model = counts.built(config)
        assert counts.parameters(config) == model.num_parameters()
        assert counts.embedding_parameters(config) == counts._tables(model)
        assert counts.matmul_parameters(config) == counts._multiplied(model)
        computed = config.max_position_embeddings * config.hidden_size if config.position == "sinusoidal" else 0
        assert limits.least_parameters(config) <= model.num_parameters() + computed


def large() -> ModelConfig:
    """Llama 3.1 405B."""
    sizes = {"vocab_size": 128_256, "hidden_size": 16_384, "intermediate_size": 53_248, "num_hidden_layers": 126}
    sizes |= {"num_attention_heads": 128, "num_key_value_heads": 8}
    return get_family("llama").from_hf({"model_type": "llama"} | sizes)


def test_a_large_model_is_planned() -> None:
    assert counts.parameters(large()) == 405_853_388_800
    with pytest.raises(InputError, match=r"1\.6 TB|1623"):
        Model(large())


def test_a_large_training_is_estimated() -> None:
    few = large().replace(num_hidden_layers=2)
    found = training_memory(few, TrainSettings(steps=1), rows=1, length=16, precision="bfloat16")
    assert found.peak > 50e9


@pytest.mark.parametrize(("rows", "vocabulary"), [(10**11, 60), (100, 10**8)])
def test_losses_of_too_many_chunks_are_not_gone_through(rows: int, vocabulary: int) -> None:
    """A simulation takes a moment for each product; this many took minutes and gigabytes."""
    config = get_family("llama").from_hf(tiny("llama")).replace(vocab_size=vocabulary)
    start = time.process_time()
    with pytest.raises(InputError, match="logits: too large to simulate"):
        training_memory(config, TrainSettings(steps=1), rows=rows, length=40, precision="float32")
    assert time.process_time() - start < 5


@pytest.mark.parametrize(("rows", "length"), [(10**12, 16), (1, 10**13), (10**18, 10**18)])
def test_batches_that_nothing_holds(rows: int, length: int) -> None:
    config = get_family("llama").from_hf(tiny("llama"))
    with pytest.raises(InputError, match="rows"):
        CopyStream([1, 2, 3], 0, length=length, rows=rows, seed=0)
    with pytest.raises(InputError):
        WindowStream(np.zeros(100, dtype=np.int64), length=length, rows=rows, seed=0)
    if rows * length > 10**18:
        with pytest.raises(InputError, match="too large to simulate"):
            training_memory(config, TrainSettings(steps=1), rows=rows, length=length, precision="float32")
    with pytest.raises(InputError, match="batch_tokens"):
        limits.check_step(config, rows * length)


@pytest.mark.parametrize(
    "asked",
    [
        {"method": "lora", "rank": 1_000_000},
        {"method": "loha", "rank": 1_000_000},
        {"method": "bottleneck", "bottleneck_dim": 1_000_000},
        {"method": "p-tuning", "bottleneck_dim": 1_000_000},
        {"method": "prefix", "bottleneck_dim": 1_000_000},
    ],
    ids=str,
)
def test_adapters_that_nothing_holds(asked: dict[str, Any]) -> None:
    config = get_family("llama").from_hf(tiny("llama") | {"hidden_size": 1024, "num_hidden_layers": 8})
    with pytest.raises(InputError, match="this machine has"):
        apply_adapter(Model(config), AdapterSettings(**asked))


def test_nothing_is_refused_where_nothing_is_held() -> None:
    with limits.estimating():
        limits.check_bytes(2**60, "This", "")
    limits.check_bytes(2**60, "This", "", "meta")
    limits.check_bytes(1, "This", "")
