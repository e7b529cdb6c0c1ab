"""Pruning: the share and the pattern that is asked for, the published scores, SparseGPT against a plain reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from calibration_cases import correlated, inputs_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import gpt2, llama, make_folder, random_model
from torch import Tensor, nn

from quatrain.cli import main
from quatrain.compression import methods
from quatrain.compression.calibration import LayerInputs, block_linears, calibrated_blocks
from quatrain.compression.pruning.unstructured import (
    DAMPING,
    METHODS,
    Pattern,
    Request,
    pattern_mask,
    prune,
    smallest,
    sparsity_of,
)
from quatrain.core.errors import InputError
from quatrain.loading.model import load_model

IDS = torch.randint(0, 60, (4, 24), generator=torch.Generator().manual_seed(0))
BATCHES = [{"input_ids": IDS[:2]}, {"input_ids": IDS[2:]}]
CONFIGS = {"llama": llama(), "gpt2": gpt2()}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("method", METHODS)
def test_half_of_the_weights_are_zero(method: str, family: str) -> None:
    model = random_model(CONFIGS[family])
    others = {name: tensor.clone() for name, tensor in model.state_dict().items() if "norm" in name or "embed" in name}
    names = prune(model, method, 0.5, batches=BATCHES)
    assert set(names) == set(block_linears(model)) and "lm_head" not in names
    assert sparsity_of(model) == pytest.approx(0.5, abs=0.01)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in others.items())
    assert torch.isfinite(model(IDS)[0]).all()


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.whole_model])
@pytest.mark.parametrize("text", ["2:4", "1:4", "4:8"])
def test_a_pattern_holds_in_every_group(method: str, text: str) -> None:
    model, pattern = random_model(llama()), Pattern.parse(text)
    for name in prune(model, method, pattern=text, batches=BATCHES):
        weight = model.get_submodule(name).weight
        assert ((weight.view(-1, pattern.of) != 0).sum(1) <= pattern.keep).all()
    assert sparsity_of(model) == pytest.approx(pattern.sparsity, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 7), st.integers(1, 40), st.floats(0, 0.99), st.integers(1, 3), st.integers(2, 5))
def test_masks_drop_what_they_are_asked_to(rows: int, columns: int, share: float, keep: int, more: int) -> None:
    scores = torch.randint(0, 4, (rows, columns)).float()  # many ties
    mask = smallest(scores, share)
    assert (mask.sum(1) == round(columns * share)).all()
    assert all(
        not drop.any() or row[drop].max() <= row[~drop].min() for row, drop in zip(scores, mask) if not drop.all()
    )
    pattern = Pattern(keep, keep + more)
    groups = columns // pattern.of
    dropped = pattern_mask(scores, pattern)
    assert (dropped[:, : groups * pattern.of].reshape(rows * groups, -1).sum(1) == more).all() if groups else True
    assert not dropped[:, groups * pattern.of :].any()


def test_wanda_weighs_each_weight_by_its_input() -> None:
    x, weight = correlated(50, 16), torch.randn(8, 16)
    pruned = METHODS["wanda"].prune(weight, inputs_of(x), Request(0.5))
    scores = weight.abs() * x.norm(dim=0)
    for row, score, kept in zip(weight, scores, pruned, strict=True):
        expected = row.clone()
        expected[score.argsort()[:8]] = 0
        assert torch.equal(kept, expected)


def plain_sparsegpt(weight: Tensor, x: Tensor, mask_of: object) -> Tensor:
    """Column by column, each with the inverse of its own remaining second moments: the formulas of the paper."""
    w, hessian = weight.double().clone(), 2 / len(x) * x.double().T @ x.double()
    hessian += DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.double)
    inverses = [torch.linalg.inv(hessian[column:, column:]) for column in range(len(hessian))]
    diagonal = torch.stack([inverse[0, 0] for inverse in inverses])
    mask = torch.zeros_like(w, dtype=torch.bool)
    for column, inverse in enumerate(inverses):
        mask_of(w, diagonal, column, mask)  # type: ignore[operator]
        error = torch.where(mask[:, column], w[:, column], 0.0) / inverse[0, 0]
        w[:, column:] -= error[:, None] * inverse[0]
        w[:, column] = torch.where(mask[:, column], 0.0, w[:, column])
    return w


@pytest.mark.parametrize("pattern", [None, Pattern(2, 4)])
def test_sparsegpt_is_its_plain_form(pattern: Pattern | None) -> None:
    x, weight = correlated(200, 32), torch.randn(12, 32, generator=torch.Generator().manual_seed(1))

    def mask_of(w: Tensor, diagonal: Tensor, column: int, mask: Tensor) -> None:
        saliency = w.square() / diagonal
        if pattern is None and column == 0:
            lowest = saliency.flatten().argsort()[: w.numel() // 2]
            mask.view(-1)[lowest] = True
        elif pattern is not None and column % pattern.of == 0:
            for row in range(len(w)):
                lowest = saliency[row, column : column + 4].argsort()[:2]
                mask[row, column + lowest] = True

    expected = plain_sparsegpt(weight, x, mask_of)
    found = METHODS["sparsegpt"].prune(weight, inputs_of(x), Request(0.5, pattern))
    torch.testing.assert_close(found.double(), expected, atol=2e-3, rtol=2e-3)
    assert torch.equal(found == 0, expected == 0)


@pytest.mark.parametrize("pattern", [None, Pattern(2, 4)])
def test_sparsegpt_loses_less_of_the_outputs_than_wanda_and_magnitude(pattern: Pattern | None) -> None:
    x, weight = correlated(500, 300), torch.randn(40, 300)
    inputs = inputs_of(x)
    errors = {
        name: inputs.error(METHODS[name].prune(weight, inputs, Request(0.5, pattern)) - weight)
        for name in ("sparsegpt", "wanda", "magnitude")
    }
    assert errors["sparsegpt"] < 0.7 * errors["wanda"] and errors["sparsegpt"] < 0.7 * errors["magnitude"]
    expected = float(((METHODS["wanda"].prune(weight, inputs, Request(0.5, pattern)) - weight) @ x.T).square().sum())
    assert errors["wanda"] == pytest.approx(expected, rel=1e-3)


def test_an_input_that_is_always_zero_loses_its_weights() -> None:
    x = correlated(50, 16)
    x[:, 3] = 0
    pruned = METHODS["sparsegpt"].prune(torch.randn(8, 16), inputs_of(x), Request(0.25))
    assert (pruned[:, 3] == 0).all() and torch.isfinite(pruned).all()


def test_each_block_is_calibrated_on_what_the_pruned_ones_before_it_send() -> None:
    model = random_model(llama())
    for block in calibrated_blocks(model, BATCHES):
        seen: dict[str, LayerInputs] = {name: LayerInputs(module.in_features) for name, module in block.layers.items()}
        hooks = [
            module.register_forward_hook(lambda _, arguments, __, into=seen[name]: into.add(arguments[0]))
            for name, module in block.layers.items()
        ]
        with torch.no_grad():
            model(IDS)
        for hook in hooks:
            hook.remove()
        for name, inputs in block.inputs.items():
            assert inputs.count == IDS.numel()
            torch.testing.assert_close(inputs.gram, seen[name].gram, atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(inputs.absmax, seen[name].absmax)
            torch.testing.assert_close(inputs.mean, seen[name].mean)
        for module in block.layers.values():
            assert isinstance(module, nn.Linear)
            with torch.no_grad():
                module.weight.mul_(0.5)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"method": "wonder"}, "method"),
        ({"method": "wanda", "sparsity": 1.0}, "sparsity"),
        ({"method": "wanda"}, "missing"),
        ({"method": "wanda", "pattern": "4:2"}, "pattern"),
        ({"method": "wanda", "pattern": "3:7"}, "divide"),
        ({"method": "wanda", "pattern": "2:4", "sparsity": 0.7}, "sparsity"),
        ({"method": "magnitude-global", "pattern": "2:4"}, "magnitude"),
        ({"method": "wanda", "sparsity": 0.5, "batches": []}, "at least one text"),
    ],
)
def test_what_cannot_be_done_is_said(asked: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        prune(random_model(llama()), **{"batches": BATCHES, **asked})  # type: ignore[arg-type]


def test_a_quantized_model_is_refused() -> None:
    model = random_model(llama())
    methods.quantize(model, "int8")
    with pytest.raises(InputError, match="before quantizing"):
        prune(model, "magnitude", 0.5)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prune")
    make_folder(folder / "model", context=64)
    (folder / "text.txt").write_text("It was the best of times, it was the worst of times. " * 60, encoding="utf-8")
    return folder


def test_the_verb_writes_a_folder_and_says_that_it_is_no_smaller(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place / "pruned"
    words = ["prune", str(place / "model"), "--method", "sparsegpt", "--pattern", "2:4", "--out", str(out)]
    assert main([*words, "--calibrate", str(place / "text.txt"), "--samples", "4"]) == 0
    shown = capsys.readouterr().out
    assert "no smaller" in shown and "perplexity" in shown and "tokens/s" in shown
    assert sparsity_of(load_model(out)[0]) == pytest.approx(0.5)
    assert main([*words, "--calibrate", str(place / "text.txt")]) == 2
    assert "not empty" in capsys.readouterr().err


def test_the_verb_compares_methods(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prune", str(place / "model"), "--method", "magnitude", "--method", "wanda", "--sparsity", "0.5"]
    assert main([*words, "--calibrate", str(place / "text.txt"), "--samples", "4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in told["models"]] == ["before", "magnitude 50%", "wanda 50%"]
    assert all(each["perplexity"] > 1 and each["tokens_per_second"] > 0 for each in told["models"])
    assert main([*words, "--out", str(place / "more")]) == 2
    told_wrong = capsys.readouterr().err
    assert "--calibrate" in told_wrong and "2 results" in told_wrong
