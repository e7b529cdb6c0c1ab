"""The stages prune and quantize in a recipe: recovery, lottery tickets, calibration, training under rounding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from quatrain.compression.pruning.unstructured import masks_of, sparsity_of
from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.loading.model import load_model
from quatrain.runs.recipe import load
from quatrain.runs.runner import run as execute

RECIPE = """
name = "compress"
[data]
source = "text.txt"
validation = 0.1
[tokenizer]
kind = "char"
[model]
family = "llama"
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 32
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
train = { steps = 8, batch_tokens = 256, learning_rate = 0.01, optimizer = "muon", warmup_steps = 1 }
{stages}
[evaluate]
prompts = ["It was"]
max_new_tokens = 4
"""
LEARN = (
    'train = { steps = 2, batch_tokens = 256, learning_rate = 0.01, optimizer = "muon", warmup_steps = 1, '
    "checkpoint_every = 1 }"
)


def run(tmp_path: Path, stages: str) -> None:
    text = "It was the best of times, it was the worst of times, it was the age of wisdom. " * 40
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    recipe = RECIPE.replace("{stages}", stages).replace("text.txt", str(tmp_path / "text.txt"))
    (tmp_path / "compress.toml").write_text(recipe, encoding="utf-8")
    execute(load(str(tmp_path / "compress.toml"), []), runs_dir=tmp_path / "runs", reporter=SilentReporter())


def result(tmp_path: Path, stage: str) -> dict:  # type: ignore[type-arg]
    place = tmp_path / "runs" / "compress" / "stages" / stage / "result.json"
    return json.loads(place.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def model(tmp_path: Path, stage: str):  # type: ignore[no-untyped-def]
    return load_model(tmp_path / "runs" / "compress" / "stages" / stage / "model")[0]


def test_zeros_stay_and_tickets_are_rewound(tmp_path: Path) -> None:
    prune = f'[[stage]]\nkind = "prune"\nsparsity = 0.5\nsamples = 4\n{LEARN}\n'
    run(tmp_path, prune + "".join(
        f'[[stage]]\nkind = "prune"\nmethod = "magnitude"\nsparsity = 0.5\nrewind = "{place}"\n{LEARN}\n'
        for place in ("seed", "other", "02-pretrain")
    ))  # fmt: skip
    zeros = []
    for number in (3, 4, 5, 6):
        found = model(tmp_path, f"0{number}-prune")
        assert sparsity_of(found) == pytest.approx(0.5, abs=0.01)
        zeros.append(torch.cat([mask.flatten() for mask in masks_of(found).values()]))
    assert all(torch.equal(zeros[0], each) for each in zeros[1:])
    told = result(tmp_path, "03-prune")
    names = [row["name"] for row in told["compression"]]
    assert names == ["before", "pruned", "trained"] and told["comparisons"][0]["rows"][2][0] == "trained"
    assert told["compression"][2]["perplexity"] < told["compression"][1]["perplexity"]
    assert any("no smaller" in note for note in told["notes"])


def test_a_smaller_model_and_a_calibrated_one_under_which_it_was_trained(tmp_path: Path) -> None:
    aware = LEARN.replace("{ ", '{ quantize_aware = "int4", quantize_group = 32, ', 1)
    run(tmp_path, f'[[stage]]\nkind = "prune"\nunits = 0.5\nlayers = 0.5\nsamples = 4\n{LEARN}\n'
                  f'[[stage]]\nkind = "pretrain"\n{aware}\n[[stage]]\nkind = "quantize"\n'
                  'method = "int4"\ngroup = 32\ncalibration = "gptq"\nsamples = 4\n')  # fmt: skip
    small = model(tmp_path, "03-prune")
    assert (small.config.num_hidden_layers, small.config.intermediate_size) == (1, 32)
    assert "int4" in " ".join(result(tmp_path, "04-pretrain")["notes"])
    assert type(model(tmp_path, "05-quantize").layers[0].mlp.up_proj).__name__ == "Int4Linear"


@pytest.mark.parametrize(
    ("stage", "named"),
    [
        ('kind = "prune"', "missing"),
        ('kind = "prune"\nsparsity = 0.5\nlayers = 0.5', "stage of their own"),
        ('kind = "prune"\nsparsity = 0.5\nrewind = "seed"', "add train"),
        ('kind = "quantize"\nmethod = "nf4"\ncalibration = "gptq"', "not nf4"),
    ],
)
def test_what_contradicts_itself_is_said(tmp_path: Path, stage: str, named: str) -> None:
    (tmp_path / "compress.toml").write_text(RECIPE.replace("{stages}", f"[[stage]]\n{stage}"), encoding="utf-8")
    with pytest.raises(InputError, match=named):
        load(str(tmp_path / "compress.toml"), [])
