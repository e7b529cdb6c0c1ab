"""NF4 is bitsandbytes', bit for bit: numbers, scales, files; a LoRA over it is QLoRA."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import llama, random_model, save_random
from torch import nn

from quatrain.compression import layer as layers
from quatrain.compression import methods, nf4, nf4_kernels
from quatrain.compression.blockwise import dynamic_code
from quatrain.compression.nf4 import NF4Linear, dequantize, dequantize_scales, quantize
from quatrain.core.errors import InputError
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder

CONFIG = llama(hidden_size=64, intermediate_size=128)
IDS = torch.randint(0, 60, (2, 11), generator=torch.Generator().manual_seed(0))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 99), st.sampled_from([1e-3, 1.0, 50.0]))
def test_numbers_and_scales_are_those_of_bitsandbytes(rows: int, columns: int, seed: int, size: float) -> None:
    library = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed").functional
    weight = size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight[0, :3] = 0
    packed, state = library.quantize_4bit(weight, blocksize=64, compress_statistics=False, quant_type="nf4")
    found = quantize(weight, double=False)
    assert torch.equal(found["weight"][: weight.numel() // 2], packed[: weight.numel() // 2])
    assert torch.equal(found["absmax"], state.absmax)
    plain = dequantize(found["weight"], found["absmax"], weight.shape, torch.float32)
    if columns % 64 == 0:  # of other shapes its kernel for processors takes other blocks than it made
        assert torch.equal(plain, library.dequantize_4bit(packed, state))
    code = torch.tensor(nf4.CODE)
    assert (plain - weight).abs().max() <= code.diff().max() / 2 * found["absmax"].max() + 1e-6 * size


@pytest.fixture
def measured():
    """What was measured of the kernel is forgotten, before and after."""
    nf4_kernels.kernel_is_faster.cache_clear()
    nf4_kernels._imported.cache_clear()
    yield
    nf4_kernels.kernel_is_faster.cache_clear()
    nf4_kernels._imported.cache_clear()


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 40),
    blocks=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_the_librarys_kernel_gives_the_same_bits(rows: int, blocks: int, dtype: torch.dtype, seed: int) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    weight = torch.randn(rows, 64 * blocks, generator=torch.Generator().manual_seed(seed))
    found = quantize(weight, double=False)
    given = found["weight"], found["absmax"]
    plain = nf4.dequantize_plain(*given, weight.shape, dtype)
    assert nf4_kernels.supports(weight.shape, 64)
    assert torch.equal(nf4_kernels.dequantize(*given, 64, weight.shape, dtype), plain)
    assert torch.equal(dequantize(*given, weight.shape, dtype), plain)


def test_a_kernel_that_disagrees_fails_or_is_missing_is_not_taken(measured, monkeypatch) -> None:
    weight = torch.randn(8, 128)
    found = quantize(weight, double=False)
    plain = nf4.dequantize_plain(found["weight"], found["absmax"], weight.shape, torch.float32)

    def off_by_one_bit(*given: Any) -> torch.Tensor:
        return nf4.dequantize_plain(given[0], given[1], given[3], given[4]).nextafter(torch.tensor(9.0))

    def failing(*given: Any) -> torch.Tensor:
        raise NotImplementedError

    for broken in (off_by_one_bit, failing):
        nf4_kernels.kernel_is_faster.cache_clear()
        monkeypatch.setattr(nf4_kernels, "dequantize", broken)
        assert torch.equal(dequantize(found["weight"], found["absmax"], weight.shape, torch.float32), plain)
        assert not nf4_kernels.kernel_is_faster(torch.device("cpu"), torch.float32, 64, nf4.dequantize_plain)
    nf4_kernels.kernel_is_faster.cache_clear()
    nf4_kernels._imported.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not nf4_kernels.kernel_is_faster(torch.device("cpu"), torch.float32, 64, nf4.dequantize_plain)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(0, 99))
def test_scales_of_scales_are_those_of_bitsandbytes(rows: int, seed: int) -> None:
    """Its kernel for processors looks numbers up in a table that is a little coarse: a few differ by one."""
    library = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed").functional
    weight = torch.randn(rows, 192, generator=torch.Generator().manual_seed(seed))
    _, state = library.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    found = quantize(weight, double=True)
    assert torch.equal(dynamic_code(), state.state2.code)
    assert torch.equal(found["offset"], state.offset)
    assert torch.equal(found["nested"], state.state2.absmax)
    apart = (found["absmax"].int() - state.absmax.int()).abs()
    assert apart.max() <= 1 and (apart > 0).float().mean() <= 0.05
    centred = quantize(weight, double=False)["absmax"] - found["offset"]
    distances = (centred / found["nested"].repeat_interleave(256)[: len(centred)])[:, None] - dynamic_code()
    mine = distances.abs().gather(1, found["absmax"].long()[:, None])[:, 0]
    assert (mine <= distances.abs().amin(1) + 1e-6).all(), "ours are the nearest"
    scales = dequantize_scales(state.absmax, state.state2.absmax, state.offset)
    theirs = library.dequantize_blockwise(state.absmax, state.state2) + state.offset
    assert torch.equal(scales, theirs)


def test_parts_of_a_large_weight_are_worked_out_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = NF4Linear.from_linear(nn.Linear(130, 77))
    whole = layer.dequantized_weight()
    monkeypatch.setattr(layers, "LOOKUP_CHUNK", 300)
    assert torch.equal(layer.dequantized_weight(), whole)
    assert torch.equal(layer.dequantized_weight(torch.bfloat16), whole.bfloat16())


@given(st.integers(0, 20))
@settings(max_examples=10, deadline=None)
def test_an_error_is_at_most_half_a_step(seed: int) -> None:
    linear = nn.Linear(96, 32)
    nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(seed))
    layer = NF4Linear.from_linear(linear, double=False)
    steps = torch.tensor(nf4.CODE).diff().max() / 2
    largest = linear.weight.reshape(-1, 64).abs().amax(1, keepdim=True)
    assert ((layer.dequantized_weight() - linear.weight).reshape(-1, 64).abs() <= steps * largest + 1e-6).all()
    again = NF4Linear.from_linear(layer.dequantize(), double=False)
    assert torch.equal(again.weight, layer.weight), "what is quantized stays"


def test_a_product_and_its_gradient_are_those_of_the_plain_weight() -> None:
    layer = NF4Linear.from_linear(nn.Linear(64, 48))
    plain = layer.dequantize()
    x = torch.randn(3, 5, 64, requires_grad=True)
    other = x.detach().clone().requires_grad_(True)
    for inputs, linear in ((x, layer), (other, plain)):
        linear(inputs).square().sum().backward()
    torch.testing.assert_close(layer(x), plain(other), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(x.grad, other.grad, atol=1e-5, rtol=1e-5)
    assert layer(x.detach().bfloat16()).dtype == torch.bfloat16
    assert sum(t.nbytes for t in layer.buffers()) < 0.53 * layer.in_features * layer.out_features + 8


@pytest.mark.parametrize("double", [True, False])
def test_saved_and_loaded_bit_for_bit(double: bool, tmp_path: Path) -> None:
    model = random_model(CONFIG)
    names = methods.quantize(model, "nf4", double=double)
    assert len(names) == 14 and isinstance(model.lm_head, nn.Linear)
    model_folder.save(model, tmp_path)
    again, _ = load_model(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    with torch.no_grad():
        assert torch.equal(again(IDS)[0], model(IDS)[0])
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "bitsandbytes" and config["bnb_4bit_use_double_quant"] is double
    with pytest.raises(InputError, match="quantized already"):
        methods.quantize(again, "nf4")


def test_transformers_reads_our_folder(tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = random_model(CONFIG, scale=0.1)
    methods.quantize(model, "nf4")
    model_folder.save(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu")
    layer = theirs.model.layers[1].mlp.up_proj
    plain = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert torch.equal(plain.float(), model.layers[1].mlp.up_proj.dequantized_weight())
    with torch.no_grad():  # its product for processors rounds to bfloat16
        torch.testing.assert_close(theirs(IDS).logits.float(), model(IDS)[0], atol=0.05, rtol=0.05)


def test_we_read_what_transformers_writes(tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    save_random(CONFIG, tmp_path / "plain")
    how = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=how, device_map="cpu", dtype=torch.float32
    )
    theirs.save_pretrained(tmp_path / "theirs")
    model, _ = load_model(tmp_path / "theirs")
    for number, name in ((0, "self_attn.q_proj"), (1, "mlp.down_proj")):
        layer = theirs.model.layers[number].get_submodule(name)
        plain = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert torch.equal(plain.float(), model.layers[number].get_submodule(name).dequantized_weight())


def test_weights_that_are_no_numbers_are_refused() -> None:
    linear = nn.Linear(64, 4)
    with torch.no_grad():
        linear.weight[1, 1] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        NF4Linear.from_linear(linear)


def test_another_way_to_quantize_is_named(tmp_path: Path) -> None:
    model = random_model(CONFIG)
    methods.quantize(model, "nf4")
    model_folder.save(model, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["bnb_4bit_quant_type"] = "fp4"
    path.write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        load_model(tmp_path)
    assert 'bnb_4bit_quant_type: "fp4"' in caught.value.problems[0]
