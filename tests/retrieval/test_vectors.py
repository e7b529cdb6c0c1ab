"""Vectors of three kinds, fusion, and two stores that answer alike."""

from __future__ import annotations

import numpy as np
import pytest

from quatrain.core.errors import InputError
from quatrain.models.text_vectors import count_matrix, entropy_weights
from quatrain.models.word_vectors import WordVectors
from quatrain.retrieval.building import build_index
from quatrain.retrieval.chunkers import ChunkSettings
from quatrain.retrieval.index import Index
from quatrain.retrieval.retrievers import FUSION, RETRIEVERS, fused
from quatrain.retrieval.settings import IndexSettings

pytest.importorskip("bm25s")
pytest.importorskip("nltk")
pytest.importorskip("sklearn")

TOPICS = {"boats": "ship sail harbour sea wind captain", "bread": "flour oven bake yeast dough crust"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("topics")
    generator = np.random.default_rng(0)
    for topic, words in TOPICS.items():
        for number in range(12):
            chosen = generator.choice(words.split(), 4, replace=False)
            (place / f"{topic}{number}.txt").write_text(" ".join(chosen) + ".")
    return place


def sources(index, question, **options):
    return [hit.source for hit in index.search(question, 8, **options)]


def settings(dense=("lsa",), store="sqlite", location=None):
    return IndexSettings(chunks=ChunkSettings(kind="whole"), dense=dense, store=store, location=location)


def test_lsa_finds_what_shares_no_word_with_the_question(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("quatrain.retrieval.encoders.lsa.DIMENSIONS", 2)
    build_index(folder, tmp_path / "index", settings())
    with Index.open(tmp_path / "index") as index:
        assert index.retriever() == "hybrid"
        found = index.search("captain", 12, retriever="dense")
        assert all(hit.source.startswith("boats") for hit in found)
        assert any("captain" not in hit.text for hit in found)
        assert all("captain" in hit.text for hit in index.search("captain", 12, retriever="bm25"))
        for retriever in RETRIEVERS:
            assert all(name.startswith("bread") for name in sources(index, "dough in the oven", retriever=retriever))
            where = {"source": "boats3.txt"}
            assert set(sources(index, "dough in the oven", retriever=retriever, where=where)) <= {"boats3.txt"}
    (folder / "more.txt").write_text("captain dough")
    report = build_index(folder, tmp_path / "index")
    assert (report.read, report.encoded) == (1, 1)  # the others keep their vectors
    (folder / "more.txt").unlink()


def test_word_vectors_weigh_rare_words(folder, tmp_path):
    words = [word for line in TOPICS.values() for word in line.split()]
    matrix = np.array([[1.0, 0.1 * number] if number < 6 else [0.1 * number, 1.0] for number in range(12)])
    WordVectors(words, matrix).write(tmp_path / "vectors.txt")
    build_index(folder, tmp_path / "index", settings((str(tmp_path / "vectors.txt"),)))
    with Index.open(tmp_path / "index") as index:
        assert all(name.startswith("boats") for name in sources(index, "harbour", retriever="dense"))
    (tmp_path / "vectors.txt").write_text((tmp_path / "vectors.txt").read_text().replace("sail", "nail"))
    with Index.open(tmp_path / "index") as index, pytest.raises(InputError, match="has changed"):
        index.search("harbour", retriever="dense")


def test_reciprocal_ranks_are_added():
    found = fused([[(1, 9.0), (2, 8.0)], [(2, 0.5), (3, 0.1)]])
    expected = {1: 1 / (FUSION + 1), 2: 1 / (FUSION + 2) + 1 / (FUSION + 1), 3: 1 / (FUSION + 2)}
    assert [number for number, _ in found] == [2, 1, 3] and dict(found) == pytest.approx(expected)


def test_entropy_weights_are_one_for_a_word_of_one_document_and_zero_for_a_word_of_all():
    weights = entropy_weights(count_matrix([[0, 1], [0], [0], [0]], 3))
    assert weights[:2] == pytest.approx([0, 1]) and weights[2] == 1


def test_qdrant_answers_as_the_embedded_store_does(folder, tmp_path):
    pytest.importorskip("qdrant_client")
    build_index(folder, tmp_path / "one", settings())
    # LSA's signs and directions follow from the chunks and the seed alone.
    address = f"memory#{tmp_path.name}"
    build_index(folder, tmp_path / "two", settings(store="qdrant", location=address))
    with Index.open(tmp_path / "one") as one, Index.open(tmp_path / "two") as two:
        assert one.store.counts() == two.store.counts()
        for retriever in RETRIEVERS:
            for question in ("captain at the harbour", "yeast", "unknown"):
                # Equal scores may stand in another order, which moves reciprocal ranks a little.
                first, second = (each.search(question, 6, retriever=retriever) for each in (one, two))
                assert [hit.score for hit in first] == pytest.approx([hit.score for hit in second], abs=1e-3)
                assert question == "unknown" or first[0].text in {hit.text for hit in second}
        where = {"source": "bread1.txt"}
        assert sources(two, "yeast oven bake flour", where=where) == sources(one, "yeast oven bake flour", where=where)
        assert {hit.source for hit in two.search("sea", 3)} <= set(two.store.sources())
    (folder / "boats0.txt").write_text("unheard word")
    report = build_index(folder, tmp_path / "two")
    assert (report.read, report.unchanged) == (1, 23)
    with Index.open(tmp_path / "two") as two:
        assert [hit.text for hit in two.search("unheard", 3, retriever="bm25")] == ["unheard word"]


def test_what_is_no_encoder_or_address_is_refused(folder, tmp_path):
    with pytest.raises(InputError):
        build_index(folder, tmp_path / "index", settings((str(tmp_path / "no-model"),)))
    with pytest.raises(InputError, match="location"):
        build_index(folder, tmp_path / "index2", settings(store="qdrant"))


def test_a_cross_encoder_ranks_the_first_hits_again(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    from pipeline_setup import saved

    from quatrain.retrieval.evidence import Entailment
    from quatrain.retrieval.rerank import Reranker

    model = saved(tmp_path / "cross", "SequenceClassification", num_labels=1)
    build_index(folder, tmp_path / "index", settings(()))
    question = "sail the sea"
    with Index.open(tmp_path / "index") as index:
        before = index.search(question, 6)
        after = index.search(question, 6, rerank=str(model))
        reranker = Reranker(str(model))
        texts = list(dict.fromkeys(hit.text for hit in index.search(question, 50)))
        scores = dict(zip(texts, reranker.scores(question, texts), strict=True))
    assert (
        [hit.text for hit in after]
        == sorted(scores, key=lambda each: -scores[each])[:6]
        != [hit.text for hit in before]
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(model)
    encoded = tokenizer(question, after[0].text, return_tensors="pt")
    assert theirs(**encoded).logits.item() == pytest.approx(after[0].score, abs=1e-4)

    def named(*labels):
        return {"id2label": dict(enumerate(labels)), "label2id": {label: place for place, label in enumerate(labels)}}

    three = named("neutral", "entailment", "contradiction")
    judge = Entailment(str(saved(tmp_path / "nli", "SequenceClassification", **three)))
    (probability,) = judge.probabilities(["ships sail"], ["ships"])
    assert 0 < probability < 1
    other = saved(tmp_path / "other", "SequenceClassification", **named("cold", "warm"))
    for kind in (Reranker, Entailment):
        with pytest.raises(InputError, match="cold, warm"):
            kind(str(other))
