"""The curate stage: three texts of one crawl, equal steps, losses with intervals; a killed run keeps its losses."""

import json
import random

import pytest

from quatrain.core.errors import InputError
from quatrain.core.progress import SilentReporter
from quatrain.runs.recipe import load
from quatrain.runs.runner import run
from quatrain.runs.stages import _curate
from quatrain.runs.stages._curate import Trained, interval, summarize

for library in ("spacy", "trafilatura", "ftfy", "lingua", "rensa"):
    pytest.importorskip(library, reason=f"{library} is not installed: pip install 'quatrain[data]'")

SMALL = ["tokenizer.vocab_size=400", "stage.curate.documents=60", "stage.curate.words=60", "stage.curate.held_out=5",
         "stage.curate.seeds=2", "stage.curate.train.steps=2", "stage.curate.train.warmup_steps=1",
         "stage.curate.train.batch_tokens=256", "stage.curate.model.hidden_size=16",
         "stage.curate.model.intermediate_size=32", "stage.curate.model.num_hidden_layers=1"]  # fmt: skip


@pytest.fixture
def recipe(tmp_path):
    numbers = random.Random(0)
    nouns = """house river garden window letter morning captain village winter table forest candle bridge horse
    road island harbour teacher kitchen mountain shoulder evening silver question answer story
    picture music paper stone water summer friend mother brother sister doctor market church school""".split()
    small = "the of and to with that have be a in on by from at his her was were not but".split()
    sentences = (" ".join(word for _ in range(7) for word in (numbers.choice(small), numbers.choice(nouns))) + "."
                 for _ in range(500))  # fmt: skip
    source = tmp_path / "text.txt"
    source.write_text("\n".join(sentences), encoding="utf-8")
    return load("curated", [f"data.source={source.as_posix()}", *SMALL])


@pytest.mark.slow
def test_variants_are_measured_alike_and_kept_after_a_kill(recipe, tmp_path, monkeypatch):
    folder = run(recipe, runs_dir=tmp_path / "runs", reporter=SilentReporter()).folder
    stage = folder / "stages/02-curate"
    result = json.loads((stage / "result.json").read_text())
    assert set(result["scores"]) == {"raw", "filtered", "deduplicated"}
    losses = result["curation"]["losses"]
    assert [(row["variant"], row["seed"]) for row in losses] == [
        (name, seed) for name in ("raw", "filtered", "deduplicated") for seed in (0, 1)
    ]
    tokens = result["curation"]["tokens"]
    assert tokens["raw"] > tokens["filtered"] > tokens["deduplicated"] > 0
    assert "Loss on text held out" in (folder / "report.html").read_text()
    assert result["validation_loss"] == min(row["loss"] for row in losses)

    (stage / "result.json").unlink()
    monkeypatch.setattr(_curate, "train", lambda *_: pytest.fail("trained again"))
    run(recipe, runs_dir=tmp_path / "runs", reporter=SilentReporter())


def test_intervals_are_students_and_differences_are_paired():
    from scipy import stats

    values = [1.0, 1.2, 1.7]
    low, high = stats.t.interval(0.95, 2, 1.3, stats.sem(values))
    assert interval(values) == (pytest.approx(1.3), pytest.approx((high - low) / 2, rel=1e-3))
    stage = load("curated").stage[1]
    losses = {"raw": [3.0, 3.5, 3.2], "filtered": [2.9, 3.4, 3.1], "deduplicated": [2.8, 3.5, 3.0]}
    rows = [Trained(name, seed, loss, 1) for name, values in losses.items() for seed, loss in enumerate(values)]
    result = summarize(rows, dict.fromkeys(losses, 1), stage)
    gains = result.extra["curation"]["differences"]
    assert gains["raw to filtered"] == {"gain": pytest.approx(0.1), "interval": pytest.approx(0, abs=1e-9)}
    assert "more than its interval" in result.notes[0]
    assert "may be chance" in result.notes[1]


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(InputError, match="equal tokens are equal steps"):
        load("curated", ["stage.curate.train.steps=none", "stage.curate.train.epochs=1"])
    with pytest.raises(InputError, match="distilbert; must be a new model"):
        load("curated", ["stage.curate.model.family=distilbert"])
