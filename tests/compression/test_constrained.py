"""Quantization-aware training, with and without LoRA, and zeros that stay zeros."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import llama, random_model
from torch import Tensor

from quatrain.adapters.apply import apply_adapter, merge_adapters
from quatrain.adapters.settings import AdapterSettings
from quatrain.compression import methods
from quatrain.compression.calibration import block_linears
from quatrain.compression.constrained import ConstrainedLinear, quantization_aware, sparse
from quatrain.compression.pruning.unstructured import masks_of, prune, sparsity_of
from quatrain.core.errors import InputError
from quatrain.models.transformer.stack import Model

CONFIG = llama(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_key_value_heads=4)
IDS = torch.randint(0, 60, (8, 17), generator=torch.Generator().manual_seed(0))


def loss_of(model: Model) -> Tensor:
    loss: Tensor = model(IDS[:, :-1], IDS[:, 1:])[1].mean()
    return loss


def learn(model: Model, steps: int) -> None:
    model.train()
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    model.eval()


def quantized(model: Model, method: str) -> float:
    small = copy.deepcopy(model)
    methods.quantize(small, method)
    with torch.no_grad():
        return float(loss_of(small))


@pytest.mark.parametrize("method", ["int8", "int4", "w8a8"])
def test_the_layers_compute_what_the_quantized_ones_will(method: str) -> None:
    model = random_model(CONFIG)
    plain = model(IDS)[0].detach()
    names = dict(model.named_parameters())
    with quantization_aware(model, method) as layers:
        rounded = model(IDS)[0].detach()
        assert len(layers) == 7 and dict(model.named_parameters()).keys() == names.keys()
        loss_of(model).backward()
        assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in model.parameters())
    assert not any(isinstance(module, ConstrainedLinear) for module in model.modules())
    assert all(dict(model.named_parameters())[name] is each for name, each in names.items())
    torch.testing.assert_close(model(IDS)[0], plain)
    methods.quantize(model, method)
    close = 0.1 if method == "w8a8" else 2e-4  # a last bit decides to which code an activation is rounded
    torch.testing.assert_close(model(IDS)[0], rounded, atol=close, rtol=close)
    assert not torch.allclose(rounded, plain, atol=1e-3)


def test_training_under_int4_beats_rounding_to_int4_at_equal_steps() -> None:
    start = random_model(CONFIG)
    learn(start, 60)
    after, aware = copy.deepcopy(start), copy.deepcopy(start)
    learn(after, 120)
    with quantization_aware(aware, "int4"):
        learn(aware, 120)
    assert quantized(aware, "int4") < 0.9 * quantized(after, "int4")


def test_a_lora_learns_under_the_rounding_of_its_merged_weight() -> None:
    model = random_model(CONFIG)
    apply_adapter(model, AdapterSettings(rank=4, alpha=8.0, target_modules=("all-linear",)), seed=0)
    with quantization_aware(model, "int4"):
        learn(model, 30)
        trained = model(IDS)[0].detach()
    assert not torch.allclose(model(IDS)[0], trained, atol=1e-3)
    merge_adapters(model)
    methods.quantize(model, "int4")
    torch.testing.assert_close(model(IDS)[0], trained, atol=2e-4, rtol=2e-4)


def test_only_integers_are_trained_under() -> None:
    with pytest.raises(InputError, match="not integers"), quantization_aware(random_model(CONFIG), "nf4"):
        pass


def test_zeros_stay_zeros() -> None:
    model = random_model(CONFIG)
    prune(model, "magnitude", 0.5)
    masks = masks_of(model)
    with sparse(model, masks):
        learn(model, 5)
        with torch.no_grad():  # as an optimizer that moves every weight
            for module in block_linears(model).values():
                module.weight.add_(0.01)  # type: ignore[operator]
        trained = model(IDS)[0].detach()
    assert sparsity_of(model) == pytest.approx(0.5, abs=0.01)
    for name, mask in masks.items():
        assert not (model.get_submodule(name).weight[~mask] != 0).any()  # type: ignore[index]
    torch.testing.assert_close(model(IDS)[0], trained)
