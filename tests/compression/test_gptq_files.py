"""Folders in GPTQ's and AWQ's layout: decoded by the formulas of their programs, and read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import llama, random_model
from torch import Tensor

from quatrain.compression import methods
from quatrain.compression.int4 import Int4Linear
from quatrain.core.errors import InputError
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder

CONFIG = llama(hidden_size=64, intermediate_size=128, num_key_value_heads=4)
IDS = torch.randint(0, 60, (2, 11), generator=torch.Generator().manual_seed(0))


def decoded(files: dict[str, Tensor], name: str, layout: str) -> Tensor:
    """The weight (in, out) as AutoGPTQ and AutoAWQ compute it, one nibble after the other."""
    words, zeros, scales = (files[f"{name}.{end}"].long() if end != "scales" else files[f"{name}.{end}"].float()
                            for end in ("qweight", "qzeros", "scales"))  # fmt: skip
    group, out = 32, scales.shape[1]
    inputs = words.shape[0] * (8 if layout == "gptq" else 1)
    order = [0, 4, 1, 5, 2, 6, 3, 7]  # which nibble of an AWQ word holds column 0, 1, …
    weight = torch.zeros(inputs, out)
    for i in range(inputs):
        for o in range(out):
            if layout == "gptq":
                code = (int(words[i // 8, o]) >> (4 * (i % 8))) & 15
                zero = ((int(zeros[i // group, o // 8]) >> (4 * (o % 8))) & 15) + 1
            else:
                code = (int(words[i, o // 8]) >> (4 * order[o % 8])) & 15
                zero = (int(zeros[i // group, o // 8]) >> (4 * order[o % 8])) & 15
            weight[i, o] = (code - zero) * scales[i // group, o]
    return weight


def quantized(layout: str, folder: Path):  # type: ignore[no-untyped-def]
    model = random_model(CONFIG)
    methods.quantize(model, "int4", group=32)
    for layer in model.modules():
        if isinstance(layer, Int4Linear):
            layer.layout = layout
    model_folder.save(model, folder)
    return model


@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_a_folder_holds_what_their_formulas_read(layout: str, tmp_path: Path) -> None:
    model = quantized(layout, tmp_path)
    files = load_file(tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == layout and config["bits"] == 4 and "lm_head" in config["modules_to_not_convert"]
    for path in ("self_attn.q_proj", "mlp.down_proj"):
        expected = model.get_submodule(f"layers.1.{path}").dequantized_weight()
        assert torch.equal(decoded(files, f"model.layers.1.{path}", layout).T, expected)
    again = load_model(tmp_path)[0]
    torch.testing.assert_close(again(IDS)[0], model(IDS)[0])
    model_folder.save(again, tmp_path / "again")
    second = load_file(tmp_path / "again" / "model.safetensors")
    assert files.keys() == second.keys() and all(torch.equal(files[name], second[name]) for name in files)


@pytest.mark.parametrize(("layout", "end", "named"), [("gptq", "g_idx", "desc_act"), ("awq", "qzeros", "zero points")])
def test_what_is_not_read_is_said(layout: str, end: str, named: str, tmp_path: Path) -> None:
    quantized(layout, tmp_path)
    files = load_file(tmp_path / "model.safetensors")
    name = f"model.layers.0.mlp.up_proj.{end}"
    files[name] = files[name].flip(0) if end == "g_idx" else files[name] + 1
    save_file(files, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=named):
        load_model(tmp_path)
