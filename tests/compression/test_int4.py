"""Int4 layers: rounding, files that transformers reads, the kernels' order and way back, products that agree."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import llama, random_model
from torch import nn

from quatrain.compression import files, int4, int4_kernels, methods
from quatrain.compression.int4 import GROUPS, Int4Linear
from quatrain.core.errors import InputError
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder

CONFIG = llama(hidden_size=128, intermediate_size=192)
IDS = torch.randint(0, 60, (2, 11), generator=torch.Generator().manual_seed(0))
DTYPES = [torch.float32, torch.bfloat16]


def linear(inputs: int, outputs: int, bias: bool = False, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias).eval()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is taken wherever it can be, fast or not."""
    monkeypatch.setattr(int4, "is_faster", lambda other, plain, dtype: True)
    int4.kernel_is_faster.cache_clear()
    yield
    int4.kernel_is_faster.cache_clear()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 4), st.sampled_from(GROUPS), st.sampled_from([1e-6, 1.0, 1e4]), st.integers(0, 99)
)
def test_rounding_is_within_half_a_step(rows: int, groups: int, group: int, size: float, seed: int) -> None:
    plain = linear(groups * group, rows, seed=seed)
    with torch.no_grad():
        plain.weight.mul_(size)
        plain.weight[0, :group] = 0
    layer = Int4Linear.from_linear(plain, group=group)
    blocks = plain.weight.detach().view(rows, -1, group)
    off = (layer.dequantized_weight().view(rows, -1, group) - blocks).abs().amax(2)
    # 1 / 256 of the largest of 7.5 steps is what a scale of 8 bits may be off.
    assert (off <= layer.scale.float() * (0.5 + 7.5 / 256)).all()
    assert not layer.dequantized_weight()[0, :group].any()
    assert sum(buffer.nbytes for buffer in layer.buffers()) == rows * groups * (group // 2 + 2)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.sampled_from(GROUPS), st.integers(0, 99))
def test_numbers_and_words_are_those_of_compressed_tensors(rows: int, groups: int, group: int, seed: int) -> None:
    library = pytest.importorskip("compressed_tensors.quantization", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    plain = linear(groups * group, rows, seed=seed)
    weight = plain.weight.detach()
    layer = Int4Linear.from_linear(plain, group=group)
    how = library.QuantizationArgs(num_bits=4, strategy="group", group_size=group)
    blocks = weight.view(rows, -1, group)
    scale, zero = calculate_qparams(blocks.amin(2), blocks.amax(2), how)
    assert torch.equal(layer.scale, scale.bfloat16())
    numbers = quantize(weight, layer.scale.float(), zero, how, dtype=torch.int8)
    assert torch.equal(layer.weight.view(torch.int32), pack_to_int32(numbers, 4))
    assert torch.equal(layer.dequantized_weight(), dequantize(numbers, layer.scale.float(), zero, how))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_a_weight_in_another_dtype_is_the_exact_one_rounded(dtype: torch.dtype) -> None:
    layer = Int4Linear.from_linear(linear(256, 48), group=64)
    numbers = torch.stack([layer.weight & 15, layer.weight >> 4], -1).view(48, 4, 64).double() - 8
    exact = (numbers * layer.scale.double()[..., None]).view(48, 256)
    assert torch.equal(layer.dequantized_weight(dtype), exact.to(dtype))


@pytest.mark.parametrize("outputs", [64, 128, 320])
@pytest.mark.parametrize("inputs", [32, 96, 256])
def test_the_kernels_order_and_back(inputs: int, outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = int4_kernels.device_kernel("cpu")
    if kernel is None:
        pytest.skip("this PyTorch has no int4 kernel for processors")
    rows = torch.randint(256, (outputs, inputs // 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = kernel.pack(rows)
    assert whole.nbytes == rows.nbytes and torch.equal(kernel.unpack(whole, outputs, inputs), rows)
    monkeypatch.setattr(int4_kernels, "CHUNK", 1 << 13)
    assert torch.equal(kernel.pack(rows), whole) and torch.equal(kernel.unpack(whole, outputs, inputs), rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("group", GROUPS)
def test_the_kernel_agrees_with_the_plain_weight(group: int, rows: int, dtype: torch.dtype, taken: None) -> None:
    layer = Int4Linear.from_linear(linear(256, 128, bias=True), group=group)
    before, plain = layer.weight.clone(), layer.dequantized_weight()
    x = torch.randn(2, rows, 256, generator=torch.Generator().manual_seed(0))
    expected = nn.functional.linear(x.double(), layer.dequantized_weight().double(), layer.bias.detach().double())
    with torch.inference_mode():
        found = layer(x.to(dtype))
    if int4_kernels.device_kernel("cpu") is not None:
        assert layer.kernel_weight is not None and layer.weight is None
        assert layer.kernel_weight.nbytes == before.nbytes and [name for name, _ in layer.named_buffers()] == ["scale"]
    assert found.dtype == dtype
    close = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), expected, atol=close * float(expected.abs().max()), rtol=close)
    # What asks for the weight gets it, wherever it is held; files, training and other devices have it in its order.
    assert torch.equal(layer.dequantized_weight(), plain)
    assert torch.equal(copy.deepcopy(layer).state_dict()["weight"], before)
    ask = x.clone().requires_grad_(True)
    layer(ask).sum().backward()
    torch.testing.assert_close(ask.grad[0, 0], layer.dequantized_weight().sum(0), atol=1e-5, rtol=1e-5)
    layer.train()
    assert layer.kernel_weight is None and torch.equal(layer.weight, before)
    layer.load_state_dict(layer.state_dict())


def test_a_way_that_is_slower_fails_or_disagrees_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = int4_kernels.device_kernel("cpu")
    if kernel is None:
        pytest.skip("this PyTorch has no int4 kernel for processors")
    x = torch.randn(2, 128).bfloat16()

    def fails(*_: object) -> None:
        raise RuntimeError("no such processor")

    for number, changes in enumerate(({"matmul": lambda *_: torch.zeros(2, 64)}, {"matmul": fails}, {"pack": fails},
                                      {"unpack": lambda *_: torch.zeros(64, 64, dtype=torch.uint8)})):  # fmt: skip
        int4.kernel_is_faster.cache_clear()
        with monkeypatch.context() as patch:
            for name, way in changes.items():
                patch.setattr(type(kernel), name, lambda self, *given, way=way: way(*given))
            layer = Int4Linear.from_linear(linear(128, 64, seed=number))
            with torch.no_grad():
                found = layer(x)
            assert layer.kernel_weight is None and torch.equal(
                found, nn.functional.linear(x, layer.dequantized_weight(x.dtype))
            )
    int4.kernel_is_faster.cache_clear()


def test_the_order_of_cuda_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the definition of its kernel in the kernel's place: pairs with the first above, numbers less 8 by scales."""

    def product(x: torch.Tensor, packed: torch.Tensor, group: int, factors: torch.Tensor) -> torch.Tensor:
        numbers = torch.stack([packed >> 4, packed & 15], -1).view(len(packed), -1, group).to(x.dtype) - 8
        scale, zero = factors.permute(2, 1, 0)[..., None].unbind(0)
        return x @ (numbers * scale + zero).view(len(packed), -1).t()

    kernel = int4_kernels.CudaKernel()
    monkeypatch.setattr(torch.ops.aten, "_convert_weight_to_int4pack", lambda rows, tiles: rows)
    monkeypatch.setattr(torch.ops.aten, "_weight_int4pack_mm", product)
    rows = torch.randint(256, (64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kernel.unpack(kernel.pack(rows), 64, 128), rows)
    layer, x = Int4Linear.from_linear(linear(128, 64), group=32), torch.randn(3, 128).bfloat16()
    found = kernel.matmul(x, kernel.pack(layer.weight), 32, int4.scales_for_kernel(layer.scale, x.dtype))
    torch.testing.assert_close(found, nn.functional.linear(x, layer.dequantized_weight(x.dtype)), atol=2e-2, rtol=2e-2)
    assert kernel.supports(128, 64, torch.bfloat16) and not kernel.supports(96, 64, torch.bfloat16)


def test_the_group_is_the_largest_that_fits_and_others_stay(tmp_path: Path) -> None:
    model = random_model(CONFIG)  # 128 and 192 inputs: 64 divides both
    names = methods.quantize(model, "int4")
    assert len(names) == 14 and {model.get_submodule(name).group for name in names} == {64}
    some = random_model(CONFIG)
    names = methods.quantize(some, "int4", group=128)
    assert len(names) == 12 and type(some.layers[0].mlp.down_proj) is nn.Linear
    model_folder.save(some, tmp_path)
    again, _ = load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(IDS)[0], some(IDS)[0])
    odd = random_model(llama(hidden_size=48, intermediate_size=80))
    with pytest.raises(InputError, match="unsuitable for int4"):
        methods.quantize(odd, "int4")
    model_folder.save(odd, tmp_path / "odd")
    with pytest.raises(InputError, match="unsuitable for int4"):
        load_model(tmp_path / "odd", quantize="int4")
    with pytest.raises(InputError, match="group: 128, for a layer of 96 inputs"):
        Int4Linear(96, 4)


def test_a_folder_written_while_the_kernel_holds_the_weight_is_the_same(tmp_path: Path, taken: None) -> None:
    model = random_model(CONFIG)
    methods.quantize(model, "int4")
    model_folder.save(model, tmp_path / "before")
    with torch.inference_mode():
        model.bfloat16()(IDS)
    model.float()
    with torch.inference_mode():
        model(IDS)
    if int4_kernels.device_kernel("cpu") is not None:
        assert model.layers[0].mlp.up_proj.kernel_weight is not None
    state = model.state_dict()
    weight = "layers.1.mlp.down_proj.weight"
    assert torch.equal(state[weight], load_model(tmp_path / "before")[0].state_dict()[weight])


def test_other_groups_are_refused_by_name(tmp_path: Path) -> None:
    model = random_model(CONFIG)
    methods.quantize(model, "int4")
    model_folder.save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["weights"]["group_size"] == 64
    for change, part in [
        ({"group_size": 16}, "group_size: 16; Quatrain reads 128, 64, 32"),
        ({"symmetric": False}, "symmetric: false; Quatrain reads true"),
        ({"num_bits": 3}, "num_bits: 3; Quatrain reads 8 or 4"),
        ({"actorder": "group"}, 'actorder: "group"'),
    ]:
        changed = copy.deepcopy(config)
        changed["config_groups"]["group_0"]["weights"] |= change
        with pytest.raises(InputError, match=part):
            files.replace_layers(random_model(CONFIG), {"quantization_config": changed})
