"""Rules of speaking that a recipe gives its model: in the files of every stage, beside those that a folder has."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tiny_models import llama

import quatrain
from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.evaluation.evaluate import evaluate
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.loading.model import load_model
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.runs import tasks
from quatrain.runs.recipe import loads
from quatrain.runs.runner import Run
from quatrain.tokenizers.tokenizer import Tokenizer

TRAIN = "train = { steps = 2, batch_tokens = 64, learning_rate = 0.001, warmup_steps = 0 }"
FRESH = """
name = "fresh"
[data]
source = "{source}"
[tokenizer]
kind = "bpe"
vocab_size = 300
[model]
hidden_size = 16
num_hidden_layers = 1
num_attention_heads = 2
max_position_embeddings = 64
generation = {{ no_repeat_ngram_size = 2 }}
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "pretrain"
evaluate = false
{train}
[[stage]]
kind = "pretrain"
evaluate = false
{train}
"""
ON_FOLDER = """
name = "further"
[data]
source = "{source}"
[model]
folder = "{folder}"
generation = {{ no_repeat_ngram_size = 3 }}
[[stage]]
kind = "pretrain"
evaluate = false
{train}
"""
TRANSLATION = """
name = "translation"
[data]
source = "{source}"
validation = 0.2
[tokenizer]
kind = "bpe"
vocab_size = 280
[model]
family = "recurrent-seq2seq"
hidden_size = 8
num_hidden_layers = 1
max_position_embeddings = 32
generation = {{ num_beams = 3 }}
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "finetune"
objective = "seq2seq"
{train}
[evaluate]
examples = 4
max_new_tokens = 7
"""


def run(recipe: str, tmp_path: Path, **words: object) -> Run:
    source = tmp_path / "text.txt"
    source.write_text("the lot of the lot of the lot of the house by the river. " * 60, encoding="utf-8")
    text = recipe.format(source=source, train=TRAIN, **words)
    return quatrain.run(loads(text), runs_dir=tmp_path / "runs", reporter=SilentReporter())


def rules(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    return found


def test_fresh_models_of_every_stage_have_the_rules_and_speak_by_them(tmp_path: Path) -> None:
    made = run(FRESH, tmp_path)
    for folder in (made.model, *(made.folder / "stages").glob("0*-pretrain/model")):
        assert rules(folder)["no_repeat_ngram_size"] == 2
        assert "repetition_penalty" not in rules(folder)
    model, tokenizer = load_model(made.model)
    params = SamplingParams(max_new_tokens=40, ignore_eos=True)
    ids = Engine(model, tokenizer).generate(["the lot"], params)[0].ids
    pairs = list(pairwise(ids))
    assert len(set(pairs)) == len(pairs)


def test_a_folders_own_rules_stay_beside_them(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["the lot of the house by the river. " * 20], vocab_size=300, kind="bpe")
    model = Model(llama(vocab_size=tokenizer.vocab_size)).initialize(0)
    model.generation_config = {"repetition_penalty": 1.2, "no_repeat_ngram_size": 5}
    model_folder.save(model, tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    made = run(ON_FOLDER, tmp_path, folder=tmp_path / "base")
    found = rules(made.model)
    assert (found["repetition_penalty"], found["no_repeat_ngram_size"]) == (1.2, 3)


def test_rules_out_of_range_are_refused_together() -> None:
    text = FRESH.format(source="x.txt", train=TRAIN).replace(
        "no_repeat_ngram_size = 2", "no_repeat_ngram_size = -1, repetition_penalty = 0"
    )
    with pytest.raises(InputError) as refused:
        loads(text)
    assert "no_repeat_ngram_size" in str(refused.value)
    assert "repetition_penalty" in str(refused.value)


def test_texts_are_scored_as_the_models_beam_search_writes_them(tmp_path: Path, monkeypatch: Any) -> None:
    pairs = [json.dumps({"source": f"the lot {number}", "target": f"of {number}"}) for number in range(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs), encoding="utf-8")
    asked: list[SamplingParams] = []

    def recorded(*given: Any, params: SamplingParams, **more: Any) -> Any:
        asked.append(params)
        return evaluate(*given, params=params, **more)

    monkeypatch.setattr(tasks, "evaluate", recorded)
    quatrain.run(
        loads(TRANSLATION.format(source=(tmp_path / "pairs.jsonl").as_posix(), train=TRAIN)),
        runs_dir=tmp_path / "runs", reporter=SilentReporter(),
    )  # fmt: skip
    assert [(params.num_beams, params.max_new_tokens) for params in asked] == [(3, 7)]
