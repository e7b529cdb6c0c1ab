"""MXFP4: the values of transformers bit for bit; a folder of GPT-OSS read, run and written with the same bytes."""

import json

import battery
import pytest
import torch
from safetensors.torch import load_file

from quatrain.compression.mxfp4 import MXFP4Linear
from quatrain.core.errors import InputError
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder
from quatrain.models.modules import replace_module
from quatrain.models.transformer.stack import Model

CASE = battery.Case(
    "gpt_oss mxfp4", "GptOssForCausalLM", "GptOssConfig",
    {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
     "num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 5,
     "max_position_embeddings": 40},
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_values_are_those_of_transformers_bit_for_bit(dtype):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (1, 254, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.arange(1, 255, dtype=torch.uint8)[:, None].repeat(1, 2)
    layer = MXFP4Linear(64, 254)
    layer.blocks, layer.scales = blocks[0], scales
    expected = convert_moe_packed_tensors(blocks, scales[None], dtype=dtype)[0].T
    ours = layer.dequantized_weight(dtype)
    assert torch.equal(ours.view(torch.int16 if dtype == torch.bfloat16 else torch.int32),
                       expected.contiguous().view(torch.int16 if dtype == torch.bfloat16 else torch.int32))  # fmt: skip


def packed_folder(folder):
    """A folder of GPT-OSS with its experts in MXFP4, and the model."""
    model = battery.ours(CASE, folder / "float")
    for name, module in list(model.named_modules()):
        if ".experts." in name and isinstance(module, torch.nn.Linear):
            replace_module(model, name, MXFP4Linear.from_linear(module))
    model_folder.save(model, folder / "packed")
    return model


def test_a_folder_is_that_of_openai_and_keeps_its_bytes(tmp_path):
    model = packed_folder(tmp_path)
    stored = load_file(tmp_path / "packed" / "model.safetensors")
    experts = {name.rpartition(".")[2]: tuple(t.shape) for name, t in stored.items() if ".0.mlp.experts." in name}
    assert experts == {
        "gate_up_proj_blocks": (3, 64, 2, 16), "gate_up_proj_scales": (3, 64, 2), "gate_up_proj_bias": (3, 64),
        "down_proj_blocks": (3, 64, 1, 16), "down_proj_scales": (3, 64, 1), "down_proj_bias": (3, 64),
    }  # fmt: skip
    config = json.loads((tmp_path / "packed" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "mxfp4"
    again, _ = load_model(tmp_path / "packed")
    ids, _ = battery.batch(CASE)
    with torch.no_grad():
        assert torch.equal(again(ids)[0], model.eval()(ids)[0])
    model_folder.save(again, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "packed" / "model.safetensors"
    ).read_bytes()


def test_transformers_reads_the_folder_as_the_same_network(tmp_path):
    import transformers

    model = packed_folder(tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "packed", quantization_config=transformers.Mxfp4Config(dequantize=True), dtype=torch.float32,
        attn_implementation="eager",
    )  # fmt: skip
    ids, _ = battery.batch(CASE)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids)[0], theirs(ids).logits, atol=1e-5, rtol=1e-5)


def test_rounding_is_to_the_nearest_value_of_a_block():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    layer = MXFP4Linear.from_linear(_linear(weight))
    error = (layer.dequantized_weight() - weight).view(8, 2, 32).abs().amax(-1)
    largest = weight.view(8, 2, 32).abs().amax(-1)
    assert (error <= largest / 4).all()
    exact = layer.dequantized_weight()
    assert torch.equal(MXFP4Linear.from_linear(_linear(exact)).dequantized_weight(), exact)


def _linear(weight: torch.Tensor) -> torch.nn.Linear:
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = torch.nn.Parameter(weight)
    return linear


def test_what_cannot_be_stored_is_told(tmp_path):
    with pytest.raises(InputError, match="48 inputs"):
        MXFP4Linear(48, 8)
    model: Model = packed_folder(tmp_path)
    from quatrain.models.families.weights import Rename

    with pytest.raises(InputError, match="as one tensor"):
        model.layers[0].mlp.experts[0].up_proj.folder_operation(Rename("a", "b"))
