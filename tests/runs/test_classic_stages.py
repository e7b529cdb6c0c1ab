"""The stages of counting models: their settings, what they refuse, and a run with an ARPA file that the verbs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import quatrain
from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.evaluation.inspection import open_subject
from quatrain.evaluation.inspection.wording import fact_lines
from quatrain.evaluation.perplexity import text_loss
from quatrain.models.arpa import read_arpa
from quatrain.models.classic._smoothing import METHODS
from quatrain.runs.recipe import load
from quatrain.runs.stages.ngram import Smoothing

TEXT = "the cat sat on the mat. the dog sat on the log. a cat and a dog met on the road. " * 30


def test_a_recipe_can_ask_for_every_way_of_smoothing() -> None:
    assert set(get_args(Smoothing)) == set(METHODS)


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        (["stage.ngram.k=2.0"], "stage[1].k"),
        (["stage.ngram.smoothing=jelinek_mercer", "stage.ngram.lambdas=[0.5]"], "stage[1].lambdas"),
        (["stage.ngram.min_counts=[2, 1]"], "stage[1].min_counts"),
        (["stage.ngram.smoothing=add_k", "stage.ngram.arpa=true"], "stage[1].smoothing"),
        (["data.streaming=true"], "streaming"),
    ],
)
def test_settings_that_contradict_each_other_are_named(overrides: list[str], place: str) -> None:
    with pytest.raises(InputError) as error:
        load("ngram", overrides)
    assert any(place in problem for problem in error.value.problems)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=fasttext"], "gensim"),
        (["method=glove", "library=gensim"], "gensim does not train it"),
        (["hierarchical=true"], "gensim"),
        (["min_subword=7"], "max_subword"),
    ],
)
def test_word_vectors_name_what_no_library_does(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match="word2vec") as error:
        load("word2vec", [f"stage.word-vectors.{each}" for each in overrides])
    assert any(message in problem for problem in error.value.problems)


def test_a_run_counts_and_its_model_is_a_model_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    overrides = [f"data.source={tmp_path / 'text.txt'}", "stage.ngram.order=3", "stage.ngram.arpa=true",
                 'evaluate.prompts=["the "]', "evaluate.max_new_tokens=5"]  # fmt: skip
    done = quatrain.run(load("ngram", overrides), runs_dir=tmp_path, reporter=SilentReporter())
    last = done.results[-1]
    held = last["scores"]["text held out"]
    assert held["loss"] < last["baselines"]["text held out"]["loss"] and last["perplexity"] > 1
    model, tokenizer = quatrain.loading.model.load_model(done.model)
    arpa, words = read_arpa(done.model / "model.arpa")
    ids = np.array(tokenizer.encode("the cat met a dog"))
    assert text_loss(model, ids, context=1).loss == pytest.approx(arpa.text_loss(ids)[0] / (len(ids) - 1), abs=1e-4)
    assert words == [tokenizer.id_to_token(token) for token in range(tokenizer.vocab_size)]
    facts = open_subject(done.model).facts()
    assert [row["n"] for row in facts["n-grams"]] == [1, 2, 3] and facts["numbers of a full table"] == len(words) ** 3
    assert any("possible" in line for line in fact_lines(facts)) and json.dumps(facts)
    again = quatrain.run(load("ngram", overrides), runs_dir=tmp_path, reporter=SilentReporter())
    assert again.results[-1]["scores"] == last["scores"], "a finished run is not counted again"
