"""Calibrated quantization: GPTQ against a plain form, AWQ and SmoothQuant change no logits, int8 activations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from calibration_cases import correlated, inputs_of
from tiny_models import gpt2, llama, make_folder, random_model
from torch import Tensor, nn

from quatrain.cli import main
from quatrain.compression import fp8, methods, smoothing
from quatrain.compression.calibration import calibrated_blocks
from quatrain.compression.fp8 import LARGEST, FP8Linear, has_products, scaled_matmul
from quatrain.compression.gptq import DAMPING, gptq, gptq_codes
from quatrain.compression.int4 import Int4Linear
from quatrain.compression.int8 import Int8Linear, integer_matmul, quantize_tokens
from quatrain.core.errors import InputError
from quatrain.evaluation.compression import Footprint, slower, verdict
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder

CONFIG = llama(hidden_size=64, intermediate_size=128, num_key_value_heads=4)
IDS = torch.randint(0, 60, (4, 24), generator=torch.Generator().manual_seed(0))
BATCHES = [{"input_ids": IDS[:2]}, {"input_ids": IDS[2:]}]
KINDS = {"int4": lambda: Int4Linear(64, 24, group=32), "int8": lambda: Int8Linear(64, 24)}


def plain_gptq(weight: Tensor, scale: Tensor, x: Tensor, levels: tuple[int, int]) -> Tensor:
    """Each column with the inverse of its own remaining second moments, in float64: the formulas of the paper."""
    w, hessian = weight.double().clone(), 2 / len(x) * x.double().T @ x.double()
    hessian += DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.double)
    left = sorted(range(w.shape[1]), key=lambda column: -float(hessian[column, column]))
    codes = torch.zeros_like(w)
    while left:
        inverse = torch.linalg.inv(hessian[left][:, left])
        column = left[0]
        codes[:, column] = (w[:, column] / scale[:, column].double()).round().clamp(*levels)
        error = (w[:, column] - codes[:, column] * scale[:, column].double()) / inverse[0, 0]
        w[:, left] -= error[:, None] * inverse[0]
        left = left[1:]
    return codes


@pytest.mark.parametrize("kind", KINDS)
def test_gptq_is_its_plain_form_and_no_worse_than_the_nearest_codes(kind: str) -> None:
    torch.manual_seed(0)
    layer, x, weight = KINDS[kind](), correlated(300, 64), torch.randn(24, 64)
    inputs = inputs_of(x)
    scale = layer.column_scales(weight)
    found = gptq_codes(weight, scale, inputs, layer.levels)
    expected = plain_gptq(weight, scale, x, layer.levels)
    assert (found.double() == expected).float().mean() > 0.999
    nearest = layer.unpacked(layer.quantize_weight(weight))
    rounded = layer.unpacked(gptq(layer, weight, inputs))
    assert inputs.error(rounded - weight) < 0.7 * inputs.error(nearest - weight)
    torch.testing.assert_close(layer.round_trip(weight), nearest)


def test_gptq_keeps_the_nearest_codes_where_they_are_better(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, weight, inputs = Int8Linear(64, 24), torch.randn(24, 64), inputs_of(correlated(300, 64))
    monkeypatch.setattr("quatrain.compression.gptq.gptq_codes", lambda weight, *_: torch.zeros_like(weight))
    assert torch.equal(gptq(layer, weight, inputs)["weight"], layer.quantize_weight(weight)["weight"])


@pytest.mark.parametrize("config", [CONFIG, gpt2(hidden_size=64), llama(num_key_value_heads=2)])
def test_a_smoothed_model_computes_the_same(config: object) -> None:
    model = random_model(config)  # type: ignore[arg-type]
    expected = model(IDS)[0]
    changed = []
    for block in calibrated_blocks(model, BATCHES):
        before = {name: module.weight.clone() for name, module in block.layers.items()}  # type: ignore[operator]
        told = {name: inputs.gram.clone() for name, inputs in block.inputs.items()}
        smoothing.smooth(block, smoothing.smoothquant_scale)
        for name, module in block.layers.items():
            if not torch.equal(block.inputs[name].gram, told[name]):
                changed.append(name)
                assert not torch.equal(before[name], module.weight)  # type: ignore[arg-type]
    torch.testing.assert_close(model(IDS)[0], expected, atol=1e-4, rtol=1e-4)
    assert any("q_proj" in name for name in changed) and any("up_proj" in name for name in changed)
    assert any("o_proj" in name for name in changed) == (config.num_key_value_heads == 4)  # type: ignore[attr-defined]


CASES = [("int4", "nearest"), ("int4", "gptq"), ("int4", "awq"), ("int8", "gptq"), ("w8a8", "nearest"),
         ("w8a8", "smoothquant"), ("fp8", "nearest")]  # fmt: skip


@pytest.fixture(scope="module")
def errors() -> dict[tuple[str, str], float]:
    """The mean squared change of the logits of a model whose inputs have a few large channels."""

    def outliers(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if "norm" in name and "layers" in name:
                    tensor[::16] *= 20
        return model

    expected = outliers(random_model(CONFIG))(IDS)[0].detach()
    found = {}
    for method, calibration in CASES:
        model = outliers(random_model(CONFIG))
        methods.quantize(model, method, calibration=calibration, batches=BATCHES)  # type: ignore[arg-type]
        found[method, calibration] = float((model(IDS)[0].detach() - expected).square().mean())
    return found


def test_calibration_loses_less_than_rounding(errors: dict[tuple[str, str], float]) -> None:
    assert errors["int4", "gptq"] < 0.8 * errors["int4", "nearest"]
    assert errors["int4", "awq"] < 0.9 * errors["int4", "nearest"]
    assert errors["w8a8", "smoothquant"] < 0.7 * errors["w8a8", "nearest"]
    assert errors["int8", "gptq"] < errors["int4", "gptq"]


def test_layers_that_no_group_divides_stay_in_float() -> None:
    model = random_model(llama(hidden_size=64, intermediate_size=48, num_key_value_heads=4))
    names = methods.quantize(model, "int4", calibration="awq", batches=BATCHES)
    assert len(names) == 12 and isinstance(model.get_submodule("layers.0.mlp.down_proj"), nn.Linear)


def test_integer_products_are_exact() -> None:
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (5, 3, 3000), dtype=torch.int8, generator=draw)
    weight = torch.randint(-127, 128, (16, 3000), dtype=torch.int8, generator=draw)
    assert torch.equal(integer_matmul(codes, weight).long(), (codes.long() @ weight.long().T).float().long())
    x = torch.randn(4, 7)
    x[1] = 0
    found, scale = quantize_tokens(x)
    assert (found.short().abs().amax(-1) >= torch.tensor([127, 0, 127, 127])).all()
    assert ((found * scale - x).abs() <= scale / 2 + 1e-6).all()


@pytest.mark.parametrize(("method", "calibration"), CASES)
def test_its_folder_is_read_back(method: str, calibration: str, tmp_path: Path) -> None:
    model = random_model(CONFIG)
    methods.quantize(model, method, calibration=calibration, batches=BATCHES)
    expected = model(IDS)[0]
    model_folder.save(model, tmp_path)
    again = load_model(tmp_path)[0]
    torch.testing.assert_close(again(IDS)[0], expected)
    held, read = model.state_dict(), again.state_dict()
    assert all(torch.equal(read[name].float(), tensor.float()) and read[name].dtype == tensor.dtype
               for name, tensor in held.items())  # fmt: skip


@pytest.mark.parametrize("method", ["int4", "int8", "w8a8", "fp8"])
def test_transformers_reads_it(method: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the reference; pip install quatrain[test]")
    pytest.importorskip("compressed_tensors", reason="transformers reads the folder with it")
    model = random_model(CONFIG)
    calibration = {"int4": "gptq", "int8": "gptq", "w8a8": "smoothquant", "fp8": "nearest"}[method]
    methods.quantize(model, method, calibration=calibration, batches=BATCHES)
    model_folder.save(model, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        difference = (theirs(IDS).logits - model(IDS)[0]).abs()
    # A last bit decides to which code an activation is rounded.
    assert difference.median() < 1e-3 and difference.max() < (0.3 if method == "w8a8" else 5e-3)


@pytest.mark.parametrize(
    ("method", "calibration", "named"),
    [
        ("int3", "nearest", "int3"),
        ("int4", "magic", "magic"),
        ("nf4", "gptq", "not nf4"),
        ("int4", "smoothquant", "w8a8"),
    ],
)
def test_what_cannot_be_calibrated_is_said(method: str, calibration: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        methods.quantize(random_model(CONFIG), method, calibration=calibration, batches=BATCHES)


def test_the_verb_writes_a_smaller_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "model", context=64)
    (tmp_path / "text.txt").write_text("It was the best of times, it was the worst of times. " * 60, encoding="utf-8")
    words = ["quantize", str(tmp_path / "model"), "--method", "int4", "--calibration", "gptq"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "--calibrate" in capsys.readouterr().err
    words += ["--calibrate", str(tmp_path / "text.txt"), "--samples", "4"]
    assert main([*words, "--group", "32", "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "became" in shown and "int4 gptq" in shown and "perplexity" in shown
    assert isinstance(load_model(tmp_path / "out")[0].get_submodule("layers.0.mlp.up_proj"), Int4Linear)
    assert main(["compare", str(tmp_path / "model"), str(tmp_path / "out"), "--text", str(tmp_path / "text.txt")]) == 0
    told = capsys.readouterr().out
    assert "perplexity" in told and "tokens/s" in told and "became" in told
    assert main(["compare", str(tmp_path / "model"), "--text", str(tmp_path / "text.txt"), "--suite", "mmlu"]) == 2
    assert "two models" in capsys.readouterr().err


def test_fp8_products_are_their_formula_and_only_taken_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = FP8Linear.from_linear(nn.Linear(32, 48, bias=False))
    x = torch.randn(2, 5, 32, generator=generator)
    x[0, 0] = 0
    with torch.no_grad():
        plain = layer(x)
    own = (x.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=1e-12)
    rounded = (x / own).to(torch.float8_e4m3fn).float() * own
    expected = rounded @ layer.dequantized_weight().T
    found = scaled_matmul(x, layer.weight, layer.scale)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=1e-2)  # the product is rounded to bfloat16
    assert not has_products("cpu") and torch.equal(layer(x), plain)
    monkeypatch.setattr(fp8, "has_products", lambda device: True)
    assert torch.equal(layer(x), found)
    assert torch.isfinite(found).all()
    narrow = FP8Linear.from_linear(nn.Linear(24, 48, bias=False))
    assert narrow(torch.ones(1, 24)).shape == (1, 48)  # sizes that the products do not take


def test_what_is_slower_is_said_first() -> None:
    found = [Footprint(name, 10, 0.0, size, 5.0, speed) for name, size, speed in
             (("before", 40, 100.0), ("int8", 10, 99.0), ("int4", 5, 60.0))]  # fmt: skip
    assert list(slower(found)) == ["SLOWER: int4 generates 0.60 times the tokens per second of before here."]
    assert next(verdict(found[0], found[2])).startswith("SLOWER: int4")
    assert not any("SLOWER" in line for line in verdict(found[0], found[1]))
