"""Structured pruning: the smaller model computes what the masked one does, and its folder is an ordinary one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import bloom, gpt2, llama, make_folder, mamba2, qwen3_5, random_model, xlstm

from quatrain.cli import main
from quatrain.compression.calibration import calibrated_blocks
from quatrain.compression.pruning.structured import Kept, prune, smaller
from quatrain.core.errors import InputError
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.stack import Model

IDS = torch.randint(0, 60, (4, 24), generator=torch.Generator().manual_seed(0))
BATCHES = [{"input_ids": IDS[:2]}, {"input_ids": IDS[2:]}]
CONFIGS = {
    "llama": llama(num_hidden_layers=4),
    "one key for two queries": llama(num_hidden_layers=3, num_key_value_heads=2),
    "biases": llama(num_hidden_layers=3, attention_bias="all", feed_forward_bias=True),
    "gpt2": gpt2(num_hidden_layers=4),
}


@torch.no_grad()
def mask(model: Model, kept: Kept) -> None:
    """Zeros in place of what is not kept, written without the code under test."""
    config: Any = model.config
    width = config.num_attention_heads // config.num_key_value_heads * config.head_dim
    for layer, block in enumerate(model.layers):
        attention, mlp = block.self_attn, block.mlp  # type: ignore[union-attr]
        if layer not in kept.layers:
            for tensor in (attention.o_proj.weight, attention.o_proj.bias, mlp.down_proj.weight, mlp.down_proj.bias):
                if tensor is not None:
                    tensor.zero_()
            continue
        number = kept.layers.index(layer)
        if kept.heads is not None:
            for head in set(range(config.num_key_value_heads)) - set(kept.heads[number]):
                attention.o_proj.weight[:, head * width : (head + 1) * width] = 0
        if kept.units is not None:
            gone = sorted(set(range(config.intermediate_size)) - set(kept.units[number]))
            mlp.down_proj.weight[:, gone] = 0


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("shares", [{"heads": 0.5}, {"units": 0.3}, {"layers": 0.5}, {"heads": 0.5, "units": 0.6}])
def test_the_smaller_model_is_the_masked_one(name: str, shares: dict[str, float], tmp_path: Path) -> None:
    if "gpt2" in name and "heads" in shares:
        pytest.skip("its files have no width of a head")
    model = random_model(CONFIGS[name])
    small, kept = prune(model, BATCHES, **shares, compensate=False)
    assert small.num_parameters() < model.num_parameters()
    mask(model, kept)
    torch.testing.assert_close(small(IDS)[0], model(IDS)[0], atol=1e-5, rtol=1e-5)
    model_folder.save(small, tmp_path)
    assert torch.equal(load_model(tmp_path)[0](IDS)[0], small(IDS)[0])


RECURRENT = {
    "mamba2": mamba2(num_hidden_layers=4, layer_types=("mamba2",) * 4),
    "xlstm": xlstm(num_hidden_layers=4, layer_types=("mlstm",) * 4, logit_softcap=30.0),
    "qwen3_5": qwen3_5(num_hidden_layers=4, layer_types=("gated_delta", "full") * 2),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_removed_whole(name: str, tmp_path: Path) -> None:
    config = RECURRENT[name]
    model = random_model(config)
    small, kept = prune(model, BATCHES, layers=0.5)
    assert (
        small.config.layer_types == tuple(config.layer_types[place] for place in kept.layers) and len(kept.layers) == 2
    )
    model.layers = torch.nn.ModuleList(model.layers[place] for place in kept.layers)
    torch.testing.assert_close(small(IDS)[0], model(IDS)[0], atol=1e-5, rtol=1e-5)
    model_folder.save(small, tmp_path)
    torch.testing.assert_close(load_model(tmp_path)[0](IDS)[0], small(IDS)[0], atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="cannot be made smaller"):
        prune(random_model(config), BATCHES, heads=0.5)


def test_transformers_reads_the_smaller_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference; pip install quatrain[test]")
    small, _ = prune(random_model(CONFIGS["one key for two queries"]), BATCHES, heads=0.5, units=0.5, layers=0.4)
    model_folder.save(small, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, small(IDS)[0], atol=1e-5, rtol=1e-5)


def test_the_least_important_parts_go() -> None:
    model = random_model(llama(num_hidden_layers=3, num_key_value_heads=4))
    with torch.no_grad():
        for block in model.layers:
            block.self_attn.o_proj.weight[:, 8:16] *= 1e-3  # type: ignore[union-attr]
            block.mlp.down_proj.weight[:, 5:10] *= 1e-3  # type: ignore[union-attr]
        model.layers[1].self_attn.o_proj.weight *= 1e-3  # type: ignore[union-attr]
        model.layers[1].mlp.down_proj.weight *= 1e-3  # type: ignore[union-attr]
    expected = model(IDS)[0]
    small, kept = prune(model, BATCHES, heads=0.25, units=5 / 48, layers=1 / 3)
    assert kept.layers == (0, 2)
    assert kept.heads == ((0, 2, 3),) * 2 and kept.units is not None
    assert all(not set(units) & set(range(5, 10)) for units in kept.units)
    torch.testing.assert_close(small(IDS)[0], expected, atol=0.02, rtol=0.02)


def test_what_stays_takes_over_what_goes() -> None:
    model = random_model(llama(num_hidden_layers=1, intermediate_size=48))
    with torch.no_grad():
        mlp: Any = model.layers[0].mlp
        for projection in (mlp.gate_proj, mlp.up_proj):
            projection.weight[24:] = projection.weight[:24]  # each unit twice: one of them can do the work of both
        mlp.down_proj.weight[:, 24:] *= 0.5
    expected = model(IDS)[0]
    kept = Kept((0,), None, (tuple(range(24)),))
    (block,) = calibrated_blocks(model, BATCHES)
    inputs = {end: block.inputs[f"layers.0.{end}"] for end in ("self_attn.o_proj", "mlp.down_proj")}
    errors = [
        float((smaller(model, kept, given)(IDS)[0] - expected).detach().square().mean()) for given in (None, [inputs])
    ]
    assert errors[1] < 0.05 * errors[0]


def test_layers_at_even_distances_need_no_text() -> None:
    model = random_model(llama(num_hidden_layers=6))
    small, kept = prune(model, [], layers=0.5, alternate=True)
    assert kept.layers == (0, 2, 5) and small.config.num_hidden_layers == 3
    assert torch.equal(small.layers[1].mlp.up_proj.weight, model.layers[2].mlp.up_proj.weight)  # type: ignore[union-attr]


def test_sliding_layers_keep_their_kind() -> None:
    config = llama(num_hidden_layers=4, family="qwen2", attention_bias="qkv", sliding_window=8,
                   layer_types=("full", "sliding", "full", "sliding"))  # fmt: skip
    small = smaller(random_model(config), Kept((0, 3)))
    assert small.config.layer_types == ("full", "sliding") and torch.isfinite(small(IDS)[0]).all()


@pytest.mark.parametrize(
    ("config", "shares", "named"),
    [
        (llama(), {}, "at least one share"),
        (llama(), {"heads": 1.0}, "below 1"),
        (gpt2(), {"heads": 0.5}, "head_dim|num_attention_heads"),
        (bloom(), {"heads": 0.5}, "alibi"),
        (bloom(), {"units": 0.5}, "intermediate_size"),
    ],
)
def test_what_cannot_be_removed_is_said(config: ModelConfig, shares: dict[str, float], named: str) -> None:
    with pytest.raises(InputError, match=named):
        prune(random_model(config), BATCHES, **shares)


def test_the_verb_makes_a_model_smaller(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "model", context=64)
    (tmp_path / "text.txt").write_text("It was the best of times, it was the worst of times. " * 60, encoding="utf-8")
    words = ["prune", str(tmp_path / "model"), "--units", "0.5", "--layers", "0.5", "--calibrate"]
    assert main([*words, str(tmp_path / "text.txt"), "--samples", "4", "--out", str(tmp_path / "out"), "--json"]) == 0
    before, after = json.loads(capsys.readouterr().out)["models"]
    assert after["bytes"] < before["bytes"] and after["parameters"] < before["parameters"]
    assert load_model(tmp_path / "out")[0].config.num_hidden_layers == 1
    assert main([*words, str(tmp_path / "text.txt"), "--method", "wanda"]) == 2
    assert "--method" in capsys.readouterr().err
