"""Data sets that are made from others by rule: the same each time, and nothing of the test in the training."""

import gzip
import json
import os
import random
from pathlib import Path

import pytest

from quatrain.core.errors import OfflineError
from quatrain.data import catalog
from quatrain.data.corpus import Corpus
from quatrain.data.derived import derived_rows, nli
from quatrain.data.derived.topic import AREA

DERIVED = [source for source in catalog.CATALOG.values() if source.derived is not None]
needs_data = pytest.mark.skipif(not os.environ.get("QUATRAIN_DATA"), reason="QUATRAIN_DATA is not set: no shared data")


def rows_of(name: str, limit: int | None = None) -> list[dict]:
    source = catalog.get(name)
    paths = [catalog.fetch(origin) for origin in source.origins]
    rows = derived_rows(str(source.derived), paths)
    return list(rows) if limit is None else [row for row, _ in zip(rows, range(limit), strict=False)]


@needs_data
@pytest.mark.parametrize("source", DERIVED, ids=[source.name for source in DERIVED])
def test_every_derived_set_is_read_in_its_format(source: catalog.Source, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = rows_of(source.name, limit=60)
    assert len(rows) == 60 and rows == rows_of(source.name, limit=60)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    corpus = Corpus(path)
    assert corpus.format == source.format and len(list(corpus)) == 60


@needs_data
@pytest.mark.parametrize(
    ("family", "key"), [("mmlu-areas", "text"), ("tatoeba-paraphrases", "source"), ("spam", "text")]
)
def test_nothing_of_the_test_is_in_the_training(family: str, key: str) -> None:
    train, test = (
        {row[key] for row in rows_of(f"{family}-{part}") if row.get("label") != "ham"} for part in ("train", "test")
    )
    assert train and test and not train & test


@needs_data
def test_spam_of_the_test_has_phrases_of_its_own() -> None:
    texts = [row["text"].lower() for row in rows_of("spam-train", 3_000) if row["label"] == "spam"]
    assert texts and not any("bitcoin" in text or "prince" in text for text in texts)


def test_areas_cover_the_57_subjects() -> None:
    assert len(AREA) == 57 and set(AREA.values()) == {"humanities", "social sciences", "science", "other"}


@pytest.mark.parametrize(
    ("caption", "label", "allowed"),
    [
        ("A man in a red shirt plays a guitar.", "entailment", {"A person", "A man", "instrument"}),
        ("A man in a red shirt plays a guitar.", "contradiction", {"A woman", "green", "piano"}),
        ("A man in a red shirt plays a guitar.", "neutral", set(nli.EXTRA)),
    ],
)
def test_hypotheses_follow_their_rules(caption: str, label: str, allowed: set[str]) -> None:
    for seed in range(20):
        hypothesis = nli._hypothesis(caption, label, random.Random(seed))
        assert hypothesis is not None and hypothesis != caption and any(word in hypothesis for word in allowed), (
            hypothesis
        )
        if label == "entailment":
            words = {*caption.rstrip(".").split(), *nli.BROADER.values(), "an", "An"}
            assert set(hypothesis.rstrip(".").split()) <= words, hypothesis


def test_a_derived_set_is_kept_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data" / "translation" / "multi30k"
    folder.mkdir(parents=True)
    with gzip.open(folder / "val.en.gz", "wt", encoding="utf-8") as file:
        file.write("A man in a red shirt plays a guitar.\nTwo young dogs run on green grass.\n")
    monkeypatch.setenv("QUATRAIN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("QUATRAIN_CACHE", str(tmp_path / "cache"))
    origin = catalog.Source("multi30k-dev.en", "", "", "text", (catalog.Copy("translation/multi30k/val.en.gz"),))
    monkeypatch.setitem(catalog.CATALOG, "multi30k-dev.en", origin)
    path = catalog.fetch("nli-captions-dev")
    assert path == tmp_path / "cache" / "data" / "derived" / "nli-captions-dev.1.jsonl"
    labels = [json.loads(line)["label"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert {"entailment", "contradiction", "neutral"} == set(labels)
    path.write_text("kept\n", encoding="utf-8")
    assert catalog.fetch("nli-captions-dev").read_text(encoding="utf-8") == "kept\n"


def test_an_origin_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUATRAIN_DATA", str(tmp_path))
    monkeypatch.setenv("QUATRAIN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(OfflineError, match=r"multi30k-train\.en is not on this machine"):
        catalog.fetch("nli-captions-train")
