"""Data sets of Hugging Face, as folders that `save_to_disk` wrote, and by name where there is no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from quatrain.core.errors import InputError, OfflineError
from quatrain.data.corpus import Corpus
from quatrain.data.records import LabelledText, TaggedTokens

datasets = pytest.importorskip("datasets", reason="datasets is not installed")
ROWS = {"text": ["good film", "bad film", "no label"], "label": [1, 0, -1]}


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Two splits whose labels are numbers with names; -1 stands for none."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    train = datasets.Dataset.from_dict(ROWS, features=features)
    both = datasets.DatasetDict({"train": train, "test": train.select([0])})
    both.save_to_disk(str(tmp_path / "reviews"))
    return tmp_path / "reviews"


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_have_the_names_of_their_classes(reviews: Path, streaming: bool) -> None:
    corpus = Corpus(reviews, streaming=streaming)
    assert corpus.format == "labelled"
    rows = list(corpus.rows())
    assert [row.value["label"] for row in rows] == ["pos", "neg", None]
    assert [row.place for row in rows] == [f"{reviews}:row {number}" for number in (1, 2, 3)]
    assert list(Corpus(reviews, split="test", streaming=streaming)) == [LabelledText("good film", None, "pos")]
    with pytest.raises(InputError, match="1 problem") as caught:
        list(corpus)
    assert f"{reviews}:row 3" in caught.value.problems[0]


def test_equal_content_has_an_equal_mark_and_a_stream_has_none(reviews: Path) -> None:
    assert Corpus(reviews).fingerprint == Corpus(reviews).fingerprint != Corpus(reviews, split="test").fingerprint
    one = datasets.Dataset.from_dict({"text": ["a"]})
    one.save_to_disk(str(reviews.parent / "one"))
    assert Corpus(reviews.parent / "one", streaming=True).fingerprint is None


def test_lists_of_classes(tmp_path: Path) -> None:
    tags = datasets.Sequence(datasets.ClassLabel(names=["O", "B-PER"]))
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": tags})
    rows = {"tokens": [["Ann", "ran"]], "ner_tags": [[1, 0]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "ner"))
    assert list(Corpus(tmp_path / "ner")) == [TaggedTokens(["Ann", "ran"], ["B-PER", "O"])]


def test_what_is_not_there_is_named(reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="its splits are train, test"):
        Corpus(reviews, split="dev")
    with pytest.raises(InputError, match="no subsets"):
        Corpus(reviews, subset="sst2")
    (reviews / "train" / "state.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not a complete data set"):
        Corpus(reviews)


def test_the_hub_is_left_alone_where_the_network_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUATRAIN_OFFLINE", "1")
    with pytest.raises(OfflineError, match="save_to_disk") as caught:
        Corpus("hf:nobody/such-a-set")
    assert "QUATRAIN_OFFLINE forbids the network" in caught.value.message
