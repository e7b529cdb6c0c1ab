"""Int8 linear layers: rounding, ways to compute, files that transformers reads, and composition with LoRA."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import gpt2, llama, random_model
from torch import nn

from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.settings import AdapterSettings
from quatrain.compression import files, int8, methods, packing
from quatrain.compression.settings import FLOAT_ONLY_FAMILIES
from quatrain.core.errors import InputError
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.models.io import model_folder
from quatrain.models.transformer.settings import DecoderFamily, ModelSettings
from quatrain.models.transformer.stack import Model

CONFIG = llama(hidden_size=64, intermediate_size=90)
IDS = torch.randint(0, 60, (2, 13), generator=torch.Generator().manual_seed(0))


@given(
    out=st.integers(1, 9),
    columns=st.integers(1, 11),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_rounding_is_within_half_a_step(out, columns, scale, bias, seed):
    torch.manual_seed(seed)
    linear = nn.Linear(columns, out, bias=bias)
    with torch.no_grad():
        linear.weight.mul_(scale)
        linear.weight[0] = 0
    layer = int8.Int8Linear.from_linear(linear)
    back = layer.dequantize()
    step = linear.weight.abs().amax(dim=1, keepdim=True) / int8.LEVELS
    assert ((back.weight - linear.weight).abs() <= step / 2 * 1.001).all()
    assert not back.weight[0].any()
    torch.testing.assert_close(int8.Int8Linear.from_linear(back).weight, layer.weight, atol=0, rtol=0)
    x = torch.randn(3, columns)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), back(x), atol=1e-5 * scale, rtol=1e-4)


@given(
    st.integers(1, 40), st.integers(1, 70), st.integers(0, 99), st.sampled_from([1e-6, 1.0, 500.0]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_numbers_and_scales_are_those_of_bitsandbytes(rows, columns, seed, size, dtype):
    library = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed").functional
    weight = (size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))).to(dtype)
    weight[0] = 0
    weight[-1, : columns // 2] = weight[-1].abs().max() / 2  # half way between two numbers
    numbers, largest, _ = library.int8_vectorwise_quant(weight.clone())
    found = int8.Int8Linear(columns, rows).quantize_weight(weight)
    zero = largest == 0  # whose scale is 0 there and 1 here
    assert torch.equal(found["weight"][~zero], numbers[~zero]) and not found["weight"][zero].any()
    assert torch.equal(found["scale"][~zero], largest[~zero] / 127) and (found["scale"][zero] == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_the_ways_agree(dtype, rows):
    torch.manual_seed(0)
    x = torch.randn(rows, 64, dtype=dtype)
    weight = torch.randint(-127, 128, (128, 64), dtype=torch.int8)
    scale = torch.rand(128) * 0.01
    exact = (x.double() @ (weight * scale.double()[:, None]).T).float()
    for path in (int8.dequantized_matmul, int8.kernel_matmul):
        found = path(x, weight, scale)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), exact, atol=2e-2 if dtype == torch.bfloat16 else 1e-4, rtol=1e-2)
    assert int8.fastest_matmul(dtype, "cpu", 64, 128, rows) in (int8.dequantized_matmul, int8.kernel_matmul)


def test_a_way_that_disagrees_is_never_taken(monkeypatch):
    monkeypatch.setattr(int8, "kernel_matmul", lambda x, weight, scale: int8.dequantized_matmul(x, weight, scale) + 1)
    assert int8.fastest_matmul(torch.float32, "cpu", 64, 192, 4) is int8.dequantized_matmul


def test_quantized_model_is_near_and_smaller():
    plain, small = random_model(CONFIG), random_model(CONFIG)
    names = methods.quantize(small, "int8")
    assert len(names) == 14 and isinstance(small.lm_head, nn.Linear)
    with torch.no_grad():
        expected, found = plain(IDS)[0], small(IDS)[0]
    assert not torch.equal(expected, found)
    assert (expected - found).abs().max() < 0.05 * expected.abs().max()
    linears = sum(module.weight.numel() for name, module in plain.named_modules() if name in names)
    outputs = sum(module.out_features for name, module in plain.named_modules() if name in names)
    assert methods.weight_bytes(plain) - methods.weight_bytes(small) == 3 * linears - 4 * outputs
    assert small(IDS)[0].shape == expected.shape


@given(out=st.integers(1, 5), columns=st.integers(1, 13), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_packing_equals_compressed_tensors(out, columns, seed):
    weight = torch.randint(-128, 128, (out, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))
    words = packing.pack(weight)
    assert torch.equal(packing.unpack(words, columns), weight)
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    assert torch.equal(words, helpers.pack_to_int32(weight, 8))


def test_engine_speaks_int8(tmp_path):
    small = random_model(CONFIG)
    methods.quantize(small, "int8")
    model_folder.save(small, tmp_path)
    engine = Engine.load(tmp_path)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    expected = [each.ids for each in Engine(small).generate(prompts, SamplingParams(12))]
    assert [each.ids for each in engine.generate(prompts, SamplingParams(12))] == expected


@pytest.mark.parametrize("name", get_args(DecoderFamily))
def test_the_families_that_a_recipe_refuses_are_those_without_int8_files(name, tmp_path):
    layers = 4 if name == "qwen3_5_text" else 1  # The fourth layer is the first with attention.
    shape = ModelSettings(family=name, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2)
    small = Model(shape.config(50))
    methods.quantize(small, "int8")
    if name in FLOAT_ONLY_FAMILIES:
        with pytest.raises(InputError, match="has no place for that"):
            model_folder.save(small, tmp_path)
    else:
        model_folder.save(small, tmp_path)


def test_dequantized_model_says_the_same():
    small = random_model(CONFIG)
    names = methods.quantize(small, "int8")
    with torch.no_grad():
        expected = small(IDS)[0]
        assert methods.dequantize(small) == names
        torch.testing.assert_close(small(IDS)[0], expected, atol=1e-5, rtol=1e-4)


def test_bfloat16_and_autocast():
    small = random_model(CONFIG)
    methods.quantize(small, "int8")
    with torch.no_grad():
        expected = small(IDS)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(small(IDS)[0].float(), expected, atol=0.5, rtol=0.05)


def test_what_cannot_be_quantized_is_told(tmp_path):
    small = random_model(CONFIG)
    apply_adapter(small, AdapterSettings(rank=2, alpha=2.0, dropout=0.0, target_modules="q_proj"))
    with pytest.raises(InputError, match="Merge the adapters"):
        methods.quantize(small, "int8")
    twice = random_model(CONFIG)
    methods.quantize(twice, "int8")
    with pytest.raises(InputError, match="No linear layer is left"):
        methods.quantize(twice, "int8")
    broken = random_model(CONFIG)
    with torch.no_grad():
        broken.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        methods.quantize(broken, "int8")
    fused = random_model(gpt2())
    methods.quantize(fused, "int8")
    with pytest.raises(InputError, match="no place for that"):
        model_folder.save(fused, tmp_path)
    assert not (tmp_path / model_folder.WEIGHTS).exists()


def test_other_quantizations_are_refused_by_name(tmp_path):
    small = random_model(CONFIG)
    methods.quantize(small, "int8")
    model_folder.save(small, tmp_path)
    with pytest.raises(InputError, match="loading"):
        model_folder.load(tmp_path)
    config = model_folder.read_config(tmp_path)
    wanted = config["quantization_config"]
    for change, part in [
        ({"quant_method": "hqq"}, "hqq"),
        ({"format": "marlin-24"}, "marlin-24"),
        (
            {"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "group"}}}},
            "group_size: null",
        ),
        ({"config_groups": {}}, "one group"),
    ]:
        with pytest.raises(InputError, match=part):
            files.replace_layers(random_model(CONFIG), {"quantization_config": wanted | change})
