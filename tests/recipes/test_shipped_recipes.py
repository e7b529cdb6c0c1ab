"""Every recipe that ships runs on the data that it names, at a tiny size and for a few steps; the pretraining ones on a
short story in place of 24 novels.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import quatrain
from quatrain.progress import SilentReporter
from quatrain.recipe import load, recipe_names
from quatrain.run import Run

needs_data = pytest.mark.skipif(not os.environ.get("QUATRAIN_DATA"), reason="QUATRAIN_DATA is not set: no shared data")

SHORT = ["stage.pretrain.train.steps=2", "stage.pretrain.train.batch_tokens=512", "stage.pretrain.train.warmup=1",
         "stage.pretrain.train.evaluate_every=2"]  # fmt: skip
STORY = ["data.source=the-verdict"]
READS = ["stage.tokenizer.data.source=the-verdict", "stage.pretrain.data.source=the-verdict"]
TUNED = ["stage.finetune.train.epochs=none", "stage.finetune.train.steps=2", "stage.finetune.train.warmup=1",
         "stage.finetune.train.keep=last", "stage.finetune.train.evaluate_every=0", "evaluate.examples=6"]  # fmt: skip
TINY = ["model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=2",
        "model.intermediate_size=32", "evaluate.max_new_tokens=4"]  # fmt: skip
CASES = {
    "gpt-pretrain": [*TINY, *STORY, *SHORT, "tokenizer.vocab_size=512"],
    "bert-pretrain": [*TINY, *STORY, *SHORT, "tokenizer.vocab_size=512"],
    "t5-pretrain": [*TINY, *STORY, *SHORT, "tokenizer.vocab_size=700"],
    "sentiment": [*TINY, *READS, *SHORT, *TUNED, "tokenizer.vocab_size=512"],
    "sentiment-lora": [*TINY, *READS, *SHORT, *TUNED, "tokenizer.vocab_size=512"],
    "pos": [*TINY, *READS, *SHORT, *TUNED, "tokenizer.vocab_size=512"],
    "ner": [*TINY, *READS, *SHORT, *TUNED, "tokenizer.vocab_size=512"],
    "qa": [*TINY, *SHORT, *TUNED, "tokenizer.vocab_size=1024"],
    "translate": [*TINY, *TUNED, "tokenizer.vocab_size=1024"],
    "summarize": [*TINY, *SHORT, *TUNED, "tokenizer.vocab_size=1024"],
}
SCORES = {"sentiment": "accuracy", "sentiment-lora": "accuracy", "pos": "accuracy", "ner": "f1", "qa": "f1",
          "translate": "bleu", "summarize": "bleu"}  # fmt: skip
ELSEWHERE = {"quickstart", "sherlock", "shakespeare-char"}
"""Recipes that the README's and the quickstart's tests run."""


def test_every_recipe_is_run_somewhere() -> None:
    assert {*CASES, *ELSEWHERE, "domain"} == set(recipe_names())


def run(name: str, overrides: list[str], folder: Path) -> Run:
    kinds = {stage.kind for stage in load(name).stage}
    chosen = [each for each in overrides if not each.startswith("stage.") or each.split(".")[1] in kinds]
    torch.set_num_threads(1)
    return quatrain.run(load(name, chosen), runs_dir=folder, reporter=SilentReporter())


@needs_data
@pytest.mark.parametrize("name", CASES)
def test_a_recipe_runs_on_its_data(name: str, tmp_path: Path) -> None:
    done = run(name, CASES[name], tmp_path)
    model = quatrain.load(done.model)
    assert model.config.family == load(name).model.family
    last = done.results[-1]
    if name in SCORES:
        ((_, scores),) = last["scores"].items()
        assert next(iter(scores)) == SCORES[name] and scores["count"] == 6
        assert len(last["samples"]) == 6
    else:
        assert last["validation_loss"] > 0
    report = done.report.read_text(encoding="utf-8")
    assert name in report and len(report) > 5_000


@needs_data
def test_a_model_goes_on_learning_from_another_text(tmp_path: Path) -> None:
    first = run("gpt-pretrain", CASES["gpt-pretrain"], tmp_path)
    more = ["data.source=the-verdict", "stage.pretrain.train.epochs=none", *SHORT, "evaluate.max_new_tokens=4"]
    done = run("domain", [f"model.folder={first.model}", *more], tmp_path)
    assert done.results[-1]["validation_loss_before"] == pytest.approx(first.results[-1]["validation_loss"], abs=0.2)
