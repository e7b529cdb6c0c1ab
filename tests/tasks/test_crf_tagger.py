"""A tagger with a CRF through recipe, evaluation and predictions on new inputs: the best sequence counts."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import quatrain
from quatrain.core.progress import SilentReporter
from quatrain.loading.model import load_model
from quatrain.runs.recipe import loads
from quatrain.runs.runner import run
from quatrain.training.objectives import TokenClassification

RECIPE = """
name = "tags"
[data]
source = "{source}"
validation = 0.2
[tokenizer]
kind = "{kind}"
vocab_size = 258
[model]
family = "recurrent-encoder"
hidden_size = 24
num_hidden_layers = 1
max_position_embeddings = 128
[model.classic]
crf = true
{classic}
[[stage]]
kind = "tokenizer"
[[stage]]
kind = "finetune"
objective = "tag"
train = {{ steps = 40, batch_tokens = 512, learning_rate = 0.02, precision = "float32", warmup_steps = 2 }}
[evaluate]
examples = 8
"""
WORDS = "words = true\nword_vocab_size = 20\nnum_filters = 8"


@pytest.mark.parametrize(("kind", "classic"), [("bpe", WORDS), ("word", "")])
def test_a_tagger_learns_and_its_best_sequence_is_what_is_predicted(kind, classic, tmp_path):
    nouns, verbs = ("dog", "cat", "mouse", "bird"), ("sees", "hears", "likes", "finds")
    sentences = [f"the\tD\n{a}\tN\n{v}\tV\nthe\tD\n{b}\tN\n" for a in nouns for v in verbs for b in nouns if a != b]
    file = tmp_path / "tags.conll"
    file.write_text("\n".join(sentences), encoding="utf-8")
    recipe = loads(RECIPE.format(source=file.as_posix(), kind=kind, classic=classic))
    done = run(recipe, runs_dir=tmp_path / "runs", reporter=SilentReporter())
    ((name, scores),) = done.results[-1]["scores"].items()
    assert scores["accuracy"] > 0.9, name

    model, tokenizer = load_model(done.model)
    assert model.crf is not None
    # A transition that forbids N behind D: no sequence may have it, whatever the emissions of a word say.
    labels = list(model.config.labels)
    model.crf.transitions.data[labels.index("D"), labels.index("N")] = -100.0
    objective = TokenClassification(tokenizer, labels, max_length=128)
    record = {"words": ["the", "dog", "sees", "the", "cat"], "tags": list("DNVDN")}
    examples, _ = objective.prepare([record])
    predicted = objective.predictions(examples, objective.predict(model, objective.collate(examples)))[0]
    shown = _tags_of(model, tokenizer, "the dog sees the cat")
    for tags in (predicted, shown):
        assert len(tags) == 5
        assert not any(pair == ("D", "N") for pair in pairwise(tags)), tags
    assert shown == predicted
    logits = model(objective.collate(examples).input_ids)[0]
    alone = [labels[int(row.argmax())] for row in logits[0]]
    assert torch.isfinite(logits).all() and "N" in alone


def _tags_of(model, tokenizer, text):
    """The labels that the package predicts for a text."""
    return [word["entity"] for word in quatrain.pipeline("pos", model, tokenizer)(text)]
