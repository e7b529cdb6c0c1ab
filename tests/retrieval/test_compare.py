"""`quatrain compare --documents`: chunkers, retrievers and encoders on the same judged questions."""

import json

import pytest

from quatrain.cli import main

pytest.importorskip("bm25s")
pytest.importorskip("nltk")
pytest.importorskip("sklearn")

TOPICS = ("ships sail the sea by the wind", "bakers bake bread of flour", "planets orbit a bright star")


def test_rankings_are_compared_side_by_side(tmp_path, capsys):
    """A collection with judgements: chunkers, retrievers and encoders with measures, time and bytes."""
    rows = [{"_id": str(n), "text": f"{TOPICS[n % 3]} number {n}"} for n in range(30)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "who bakes bread"}) + "\n")
    (tmp_path / "qrels.tsv").write_text("".join(f"q\t{n}\t1\n" for n in range(1, 30, 3)))
    words = ["bm25", "hybrid", "bm25@chunks=tokens,size=3,overlap=1"]
    assert main(["compare", *words, "--documents", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first, hybrid, cut = found["rankings"]
    assert found["questions"] == 1 and first["ranking"] == "whole, bm25" and hybrid["ranking"] == "whole, hybrid by lsa"
    assert first["ndcg_10"] == pytest.approx(1) and first["recall_10"] == 1 and first["chunks"] == 30
    assert cut["chunks"] > 30 and hybrid["bytes"] > first["bytes"] > 0 and "over_first" not in first
    assert hybrid["over_first"]["value"] == pytest.approx(hybrid["ndcg_10"] - first["ndcg_10"])
    assert all(each["index_seconds"] > 0 and each["search_ms"] > 0 for each in found["rankings"])
    assert main(["compare", "bm25", "--documents", str(tmp_path)]) == 0
    assert "recall@100" in capsys.readouterr().out
    assert main(["compare", "bm26", "hybrid@size=3,depth=4", "--documents", str(tmp_path)]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "did you mean" in shown.lower() and "depth=4: must be NAME=VALUE" in shown
