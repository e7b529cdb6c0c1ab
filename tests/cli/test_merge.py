"""`quatrain merge`: adapters made part of their model, alone and by weights, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_models import llama, random_model

from quatrain.adapters import peft_files
from quatrain.adapters.apply import apply_adapter
from quatrain.adapters.layer import adapter_layers
from quatrain.adapters.settings import AdapterSettings
from quatrain.cli import main
from quatrain.loading.combined import together
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder

IDS = torch.randint(0, 60, (2, 11), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """base, and the adapters one (LoRA) and two (IA3, with a part that learned whole) over it."""
    model_folder.save(random_model(llama(), scale=0.1), tmp_path / "base")
    for number, (name, how) in enumerate({
        "one": AdapterSettings(rank=4, alpha=8.0),
        "two": AdapterSettings(method="ia3", modules_to_save=("layers.1.input_layernorm",)),
        "soft": AdapterSettings(method="prompt", num_virtual_tokens=3),
    }.items()):  # fmt: skip
        model = model_folder.load(tmp_path / "base")
        apply_adapter(model, how, seed=number)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    noise = torch.Generator().manual_seed(number)
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
        peft_files.save_adapter(model, tmp_path / name, base_model="../base")
    return tmp_path


def logits(path: Path) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = load_model(path)[0](IDS)[0]
    return found


@pytest.mark.parametrize("name", ["one", "two"])
def test_one_adapter_says_the_same_merged(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(folder / name), "--out", str(folder / "out")]) == 0
    shown = capsys.readouterr().out
    assert "logits" in shown and "perplexity" in shown and str(folder / "out") in shown
    torch.testing.assert_close(logits(folder / "out"), logits(folder / name), atol=1e-5, rtol=1e-5)
    assert not list(adapter_layers(load_model(folder / "out")[0]))


def test_by_weights_each_adds_its_share(folder: Path) -> None:
    words = ["merge", str(folder / "one"), str(folder / "two"), "--weights", "0.25", "--weights", "2"]
    assert main([*words, "--out", str(folder / "out")]) == 0
    start, found = (model_folder.load(folder / name).state_dict() for name in ("base", "out"))
    for name in ("one", "two"):
        assert main(["merge", str(folder / name), "--out", str(folder / f"{name}-merged")]) == 0
    one, two = (model_folder.load(folder / f"{name}-merged").state_dict() for name in ("one", "two"))
    for name, tensor in found.items():
        expected = start[name] + 0.25 * (one[name] - start[name]) + 2 * (two[name] - start[name])
        torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found["layers.1.input_layernorm.weight"], start["layers.1.input_layernorm.weight"])


def test_a_change_beyond_the_tolerance_is_refused_and_nothing_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["merge", str(folder / "one"), "--quantize", "nf4", "--out", str(folder / "out")]
    assert main([*words, "--tolerance", "0.001"]) == 2
    assert "--tolerance" in capsys.readouterr().err and not (folder / "out").exists()
    assert main([*words, "--tolerance", "0.5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert 0.001 < told["share"] < 0.5
    assert (folder / "out" / "config.json").read_text().count("nf4") == 1


@pytest.mark.parametrize("method", ["int8", "nf4"])
@pytest.mark.parametrize("several", [False, True])
def test_rounding_is_allowed_what_its_bits_change(
    method: str, several: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(folder / name) for name in ("one", "two")[: 1 + several]]
    assert main(["merge", *names, "--quantize", method, "--out", str(folder / "out")]) == 0
    assert "% of the largest" in capsys.readouterr().out


def test_several_adapters_are_compared_with_themselves_over_their_base(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["merge", str(folder / "one"), str(folder / "two"), "--weights", "0.25", "--weights", "-2"]
    assert main([*words, "--out", str(folder / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["share"] < 1e-5
    over = together([folder / "one", folder / "two"], [0.25, -2])
    with torch.no_grad():
        torch.testing.assert_close(over(IDS)[0], logits(folder / "out"), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(over(IDS)[0], logits(folder / "one"), atol=1e-2)
    assert main([*words, "--out", str(folder / "none"), "--tolerance", "0"]) == 2
    assert not (folder / "none").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--weights", "nan"], "must be a finite number"),
        (["--weights", "inf"], "must be a finite number"),
        (["--weights=-inf"], "must be a finite number"),
        (["--weights", "0"], "nothing would be merged"),
        (["--weights", "1e39"], "not finite"),
        (["--weights", "1", "--weights", "1"], "as many as adapters"),
        (["--tolerance", "nan"], "tolerance"),
        (["--tolerance=-1"], "tolerance"),
        (["--probe", "no-such-file.txt"], "no-such-file"),
    ],
)
def test_numbers_that_make_no_model_are_refused(
    words: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(folder / "one"), *words, "--out", str(folder / "out")]) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told and not (folder / "out").exists(), told


def test_adapters_of_a_tied_base_are_merged_untied(folder: Path) -> None:
    """One adapter that leaves the embedding tied and one that has the embedding learn alone."""
    model_folder.save(random_model(llama(tie_word_embeddings=True), scale=0.1), folder / "tied")
    for number, parts in enumerate([(), ("embed_tokens",)]):
        model = model_folder.load(folder / "tied")
        apply_adapter(model, AdapterSettings(rank=2, modules_to_save=parts), seed=number)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
        peft_files.save_adapter(model, folder / f"tied-{number}", base_model=str(folder / "tied"))
    names = [str(folder / f"tied-{number}") for number in (0, 1)]
    assert main(["merge", *names, "--out", str(folder / "out")]) == 0
    merged, base = model_folder.load(folder / "out"), model_folder.load(folder / "tied")
    assert merged.lm_head is not None and torch.equal(merged.lm_head.weight, base.embed_tokens.weight)
    assert not torch.equal(merged.embed_tokens.weight, base.embed_tokens.weight)


def test_what_cannot_be_merged_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        "no weight": [str(folder / "soft")],
        "not an adapter folder": [str(folder / "base")],
        "as many as adapters": [str(folder / "one"), "--weights", "1", "--weights", "2"],
        "must be one of int8, int4, nf4": [str(folder / "one"), "--quantize", "int3"],
        "no adapter is named": [],
    }
    for text, words in cases.items():
        assert main(["merge", *words, "--out", str(folder / "out")]) == 2, text
        said = capsys.readouterr().err
        assert text in said and "Traceback" not in said, said
    model_folder.save(model_folder.load(folder / "base"), folder / "other")
    place = folder / "two" / peft_files.ADAPTER_CONFIG
    place.write_text(json.dumps(json.loads(place.read_text()) | {"base_model_name_or_path": "../other"}))
    assert main(["merge", str(folder / "one"), str(folder / "two"), "--out", str(folder / "out")]) == 2
    assert "of 2 bases" in capsys.readouterr().err
    assert main(["merge", str(folder / "one"), "--out", str(folder / "base")]) == 2
    assert "is not empty" in capsys.readouterr().err
