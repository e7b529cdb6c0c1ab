"""The retrieval stage makes an index that can be asked, and a table of what it compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import quatrain
from quatrain.core.errors import InputError
from quatrain.retrieval.answer import extract
from quatrain.retrieval.index import Index

pytest.importorskip("bm25s")
pytest.importorskip("nltk")
pytest.importorskip("sklearn")

ANIMALS = "cats dogs horses lions tigers foxes wolves bears owls hawks crows geese".split()


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"question": f"What do {animal} eat?", "answer": f"The {animal} eat food{number}. They sleep."}
            for number, animal in enumerate(ANIMALS)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_recipe_rag_measures_a_file_and_leaves_an_index(pairs: Path, tmp_path: Path) -> None:
    small = [
        f"stage.retrieval.source={pairs}",
        'stage.retrieval.columns={ text = "answer", title = "question" }',
        'stage.retrieval.compared=[{ retriever = "bm25" }, { retriever = "hybrid", chunks = { kind = "tokens" } }]',
    ]
    done = quatrain.run("rag", small, runs_dir=tmp_path / "runs")
    (result,) = done.results
    (table,) = result["comparisons"]
    assert [row[0] for row in table["rows"]] == ["headings 200/40, bm25", "tokens 200/40, hybrid"]
    scores = result["scores"]["questions"]
    # Topics are left out by a hash of their text, so these counts are the same everywhere.
    assert scores["ndcg_10"] == 1.0 and scores["verified"] == 1.0 and scores["answered"] == 1.0
    assert scores["right_document"] == 1.0 and scores["refused"] == 1.0 and scores["separation"] == 1.0
    assert 0 < result["baselines"]["questions"]["ndcg_10"] < 0.9
    report = done.report.read_text(encoding="utf-8")
    assert "tokens 200/40, hybrid" in report and "Not in the documents." in report
    with Index.open(done.folder / "stages" / "01-retrieval" / "index") as index:
        assert index.store.counts().documents == len(ANIMALS)  # those left out of the measurement too
        found = extract(index, "What do wolves eat?", index.search("What do wolves eat?"))
        assert found.text.startswith("The wolves eat food6.") and all(each.holds(index) for each in found.citations)
    assert quatrain.run("rag", small, runs_dir=tmp_path / "runs").results == done.results


def test_settings_of_the_stage_are_checked_together() -> None:
    from quatrain.runs.recipe import load

    with pytest.raises(InputError) as error:
        load("rag", ["stage.retrieval.dense=[]", 'stage.retrieval.compared=[{ retriever = "hybird" }]'])
    assert "did you mean hybrid" in str(error.value)
    with pytest.raises(InputError, match="needs vectors"):
        load("rag", ["stage.retrieval.dense=[]"])
