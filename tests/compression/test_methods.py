"""What holds for every way to quantize: gradients, LoRA over it, loading straight into it, what is held in memory."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
from tiny_models import gpt2, llama, random_model, save_random
from torch import nn

from quatrain.adapters.apply import apply_adapter, count_trainable_parameters, merge_adapters
from quatrain.adapters.layer import dequantized
from quatrain.adapters.settings import AdapterSettings
from quatrain.compression import layer as layers
from quatrain.compression import methods
from quatrain.compression.methods import METHODS
from quatrain.compression.settings import BITS, Method
from quatrain.core.errors import InputError
from quatrain.loading.merging import OF_BITS
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder
from quatrain.models.transformer.config import ModelConfig
from quatrain.runs.stages.quantize import QuantizeStage

WEIGHT_ONLY = [method for method in METHODS if method != "w8a8"]
"""Methods that leave the inputs of a layer as they are."""
ADAPTED = ("int8", "int4", "nf4")
"""Methods that an adapter's settings take for its base."""
CONFIG = llama(hidden_size=64, intermediate_size=128)
GPT2 = gpt2(hidden_size=64)
SHAPES = {(64, 64), (128, 64), (64, 128), (32, 64)}
"""Those of the layers of the first."""
IDS = torch.randint(0, 60, (2, 11), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", WEIGHT_ONLY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_and_its_gradient_are_those_of_the_plain_weight(method: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = METHODS[method].from_linear(nn.Linear(128, 48))
    float_layer = layer.dequantize().to(dtype)
    x = torch.randn(3, 5, 128, dtype=dtype, requires_grad=True)
    other = x.detach().clone().requires_grad_(True)
    outputs = [linear(inputs) for inputs, linear in ((x, layer), (other, float_layer))]
    for y in outputs:
        y.float().square().sum().backward()
    close = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(*outputs, atol=close, rtol=close)
    torch.testing.assert_close(x.grad, other.grad, atol=close * float(other.grad.abs().max()), rtol=close)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), outputs[1], atol=close, rtol=close)
        assert layer(x[:0]).shape == (0, 5, 48)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize("method", WEIGHT_ONLY)
@pytest.mark.parametrize("outputs", [7, 64, 131])
def test_strips_are_parts_of_the_same_product(method: str, outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = METHODS[method].from_linear(nn.Linear(96, outputs), **({"group": 32} if method == "int4" else {}))
    x, expected = torch.randn(3, 96), []
    for strip in (1 << 20, 1):
        monkeypatch.setattr(layers, "STRIP_WEIGHTS", strip)
        expected.append(layer.matmul(x))
    torch.testing.assert_close(*expected)
    torch.testing.assert_close(expected[0], x @ layer.dequantized_weight().t(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_of_a_weights_size_is_held_between_the_passes(method: str) -> None:
    layer = METHODS[method].from_linear(nn.Linear(256, 256))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.numel()) or each, lambda each: each):
        layer(torch.randn(2, 256, requires_grad=True)).sum().backward()
    assert all(count <= 2 * 256 for count in kept)


@pytest.mark.parametrize("method", ADAPTED)
def test_a_lora_over_it_learns_and_merges(method: str) -> None:
    model = random_model(CONFIG)
    names = methods.quantize(model, method)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    weights = {name: model.get_submodule(name).dequantized_weight() for name in names}
    elements = sum(weight.numel() for weight in weights.values())
    settings = AdapterSettings(rank=4, alpha=8.0, trainable_tokens="none", quantize_base=method)
    assert apply_adapter(model, settings, seed=1) == names
    assert count_trainable_parameters(model)[1] >= elements + sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model.train()(IDS[:, :-1], IDS[:, 1:])[1].mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    model.eval()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name.replace(".base.", ".")]), name
    with torch.no_grad():
        learned = model(IDS)[0]
        deltas = {name: model.get_submodule(name).delta() for name in names}
        assert merge_adapters(model) == names
        torch.testing.assert_close(model(IDS)[0], learned, atol=1e-5, rtol=1e-4)
    for name in names:  # in full precision, whatever the base was held in
        layer = model.get_submodule(name)
        assert type(layer) is nn.Linear and layer.weight.dtype == torch.float32
        assert torch.equal(layer.weight, weights[name] + deltas[name])


@pytest.mark.parametrize("method", ADAPTED)
def test_gradients_of_a_lora_are_those_over_the_plain_weights(method: str) -> None:
    quantized, float_model = random_model(CONFIG), random_model(CONFIG)
    methods.quantize(quantized, method)
    methods.quantize(float_model, method)
    methods.dequantize(float_model)
    found = []
    for model in (quantized, float_model):
        apply_adapter(model, AdapterSettings(rank=4, trainable_tokens="none"), seed=1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("lora_B"):
                    parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(2))
        model.train()(IDS[:, :-1], IDS[:, 1:])[1].mean().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("config", [CONFIG, GPT2], ids=["llama", "gpt2"])
def test_floats_are_read_straight_into_it(config: ModelConfig, method: str, tmp_path: Path) -> None:
    """The same as quantizing what was read; GPT-2's files fuse and transpose what is quantized."""
    model_folder.save(random_model(config), tmp_path, shard_bytes=50_000)
    straight, _ = load_model(tmp_path, quantize=method)
    after = model_folder.load(tmp_path)
    methods.quantize(after, method)
    assert straight.state_dict().keys() == after.state_dict().keys()
    for name, tensor in after.state_dict().items():
        assert torch.equal(straight.state_dict()[name], tensor), name
        assert straight.state_dict()[name].dtype == tensor.dtype, name
    if config is CONFIG:
        model_folder.save(straight, tmp_path / "again")
        with torch.no_grad():
            assert torch.equal(load_model(tmp_path / "again")[0](IDS)[0], after(IDS)[0])
            # What is quantized already is as it is.
            other = next(name for name in METHODS if name != method)
            assert torch.equal(load_model(tmp_path / "again", quantize=other)[0](IDS)[0], after(IDS)[0])
    else:
        with pytest.raises(InputError, match="fuses or transposes"):
            model_folder.save(straight, tmp_path / "again")


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_is_quantized_while_no_other_float_is_held(method: str, tmp_path: Path) -> None:
    """Beside what is there for good, at no time more than one weight and what rounding it takes."""
    save_random(CONFIG.replace(num_hidden_layers=6), tmp_path)
    alive: list[int] = []
    rounded = METHODS[method].quantize_weight

    def watched(self: nn.Module, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor and each.device.type == "cpu"]
        weights = [each for each in tensors if tuple(each.shape) in SHAPES and each.dtype.itemsize > 1]
        floats = {each.data_ptr() for each in weights if each.is_floating_point()}
        alive.append(len(floats))
        return rounded(self, weight)

    gc.collect()
    gc.freeze()  # `get_objects` then lists what the load makes, not the hundred thousands of objects from before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(METHODS[method], "quantize_weight", watched)
        load_model(tmp_path, quantize=method)
    assert alive == [1] * 42


def test_a_word_that_is_no_method_is_refused(tmp_path: Path) -> None:
    save_random(CONFIG, tmp_path)
    with pytest.raises(InputError, match="quantize: 'int3'; must be one of int8, int4, nf4"):
        load_model(tmp_path, quantize="int3")
    assert isinstance(dequantized(METHODS["int4"](64, 32, group=32)), nn.Linear)


@pytest.mark.parametrize("method", ["int8", "int4"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": True}, {"attention_bias": "all", "feed_forward_bias": True}],
    ids=["plain", "tied", "biases"],
)
def test_folder_comes_back_bit_for_bit_and_loads_in_transformers(
    method: str, changes: dict[str, object], tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    transformers = pytest.importorskip("transformers")
    model = random_model(CONFIG.replace(**changes))
    methods.quantize(model, method)
    model_folder.save(model, tmp_path)
    again, _ = load_model(tmp_path)
    ours, read = model.state_dict(), again.state_dict()
    assert set(ours) == set(read) and all(torch.equal(ours[name], read[name]) for name in ours)
    assert all(ours[name].dtype == read[name].dtype for name in ours)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = model(IDS)[0]
        torch.testing.assert_close(again(IDS)[0], expected, atol=0, rtol=0)
        torch.testing.assert_close(theirs(IDS).logits.float(), expected, atol=2e-5, rtol=1e-4)
    model_folder.save(again, tmp_path / "second")
    assert (tmp_path / "second" / model_folder.WEIGHTS).read_bytes() == (tmp_path / model_folder.WEIGHTS).read_bytes()


def test_one_disturbed_turn_does_not_decide_which_way_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of the plain way take 1 s; the first of the other is held up, as by another process."""
    clock = [0.0]
    turns = {"plain": iter([9.0, 1.0, 1.0, 1.0, 1.0]), "other": iter([9.0, 8.0, 0.5, 0.5, 0.5])}
    turns["slow"] = iter([9.0] * 9)
    monkeypatch.setattr(layers.time, "perf_counter", lambda: clock[0])

    def way(name: str) -> torch.Tensor:
        clock[0] += next(turns[name])
        return torch.ones(2)

    assert layers.is_faster(lambda: way("other"), lambda: way("plain"), torch.float32)
    turns["plain"] = iter([1.0] * 5)
    assert not layers.is_faster(lambda: way("slow"), lambda: way("plain"), torch.float32)
    assert len(list(turns["slow"])) == 9 - 1 - 2, "one that is slow twice is not waited for"


def test_options_and_settings_name_every_method_and_no_other() -> None:
    """One list for `--quantize` of every verb, for the stage, and for the bits that a server counts with."""
    from quatrain.cli.predict import RunningOptions
    from quatrain.cli.sampling import LoadingOptions
    from quatrain.cli.suites import SuiteOptions

    assert set(get_args(Method)) == set(METHODS) == set(BITS) == set(OF_BITS)
    for options in (LoadingOptions, RunningOptions, SuiteOptions):
        assert get_type_hints(options)["quantize"] == Method | None
    assert get_args(QuantizeStage.model_fields["method"].annotation) == get_args(Method)
