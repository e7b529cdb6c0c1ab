"""The metrics that papers quote, beside the libraries that compute them."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.evaluation.metrics.answers import normalized, squad, token_f1
from quatrain.evaluation.metrics.classification import accuracy, by_label, confusion, f1, matthews, pearson, spearman
from quatrain.evaluation.metrics.entities import by_type, entities, entity_f1
from quatrain.evaluation.metrics.likelihood import perplexity
from quatrain.evaluation.metrics.texts import bleu, chrf, rouge

sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
seqeval = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")

labels = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@given(labels)
def test_classes_are_scored_as_by_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    said, true = [a for a, _ in pairs], [b for _, b in pairs]
    assert accuracy(said, true) == pytest.approx(sklearn.accuracy_score(true, said))
    for average in ("macro", "micro", "weighted"):
        expected = sklearn.precision_recall_fscore_support(true, said, average=average, zero_division=0)[2]
        assert f1(said, true, average=average)["f1"] == pytest.approx(expected)
    assert matthews(said, true) == pytest.approx(sklearn.matthews_corrcoef(true, said), abs=1e-12)


numbers = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=3, max_size=30).filter(
    lambda pairs: len({a for a, _ in pairs}) > 1 and len({b for _, b in pairs}) > 1
)


@given(numbers)
def test_correlations_are_those_of_numpy(pairs: list[tuple[int, int]]) -> None:
    said, true = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    assert pearson(said, true) == pytest.approx(np.corrcoef(said, true)[0, 1], abs=1e-9)

    def ranks(values: list[float]) -> list[float]:
        below = [sum(each < value for each in values) for value in values]
        return [less + (values.count(value) + 1) / 2 for less, value in zip(below, values, strict=True)]

    assert spearman(said, true) == pytest.approx(np.corrcoef(ranks(said), ranks(true))[0, 1], abs=1e-9)


TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
sentences = st.lists(
    st.integers(1, 9).flatmap(
        lambda size: st.tuples(*[st.lists(st.sampled_from(TAGS), min_size=size, max_size=size)] * 2)
    ),
    min_size=1,
    max_size=6,
)


@given(sentences)
def test_entities_are_scored_as_by_seqeval(pairs: list[tuple[list[str], list[str]]]) -> None:
    said, true = [a for a, _ in pairs], [b for _, b in pairs]
    found = entity_f1(said, true)
    assert found["precision"] == pytest.approx(seqeval.precision_score(true, said, zero_division=0))
    assert found["recall"] == pytest.approx(seqeval.recall_score(true, said, zero_division=0))
    assert found["f1"] == pytest.approx(seqeval.f1_score(true, said, zero_division=0))


def test_each_type_of_span_is_scored_as_by_seqeval() -> None:
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "I-LOC", "O"], ["B-ORG", "O", "O", "O"]]
    said = [["B-PER", "O", "O", "B-LOC"], ["O", "B-LOC", "I-LOC", "B-PER"], ["O", "O", "O", "O"]]
    expected = seqeval.classification_report(true, said, output_dict=True, zero_division=0)
    rows = by_type(said, true)
    assert [row["label"] for row in rows] == ["LOC", "ORG", "PER"]
    for row in rows:
        wanted = expected[row["label"]]
        assert row["count"] == wanted["support"] and row["f1"] == pytest.approx(wanted["f1-score"])
        assert [row["precision"], row["recall"]] == pytest.approx([wanted["precision"], wanted["recall"]])


def test_spans_of_every_scheme() -> None:
    assert entities(["B-PER", "I-PER", "O", "I-LOC"]) == [("PER", 0, 1), ("LOC", 3, 3)]
    assert entities(["B-PER", "E-PER", "S-LOC", "O"]) == [("PER", 0, 1), ("LOC", 2, 2)]
    assert entities(["B-PER", "L-PER", "U-LOC"]) == [("PER", 0, 1), ("LOC", 2, 2)]
    assert entities(["I-PER", "I-PER", "B-PER"]) == [("PER", 0, 1), ("PER", 2, 2)]
    with pytest.raises(InputError, match="number 1 is 'NOUN'"):
        entities(["NOUN"])


def test_answers_as_the_script_of_squad() -> None:
    assert normalized("The  Eiffel-Tower, in Paris!") == "eiffeltower in paris"
    assert token_f1("the big cat", "a cat") == pytest.approx(2 / 3)
    found = squad(["the cat", "dog", "", "x"], [["Cat", "a dog"], ["a big dog"], [], []])
    assert found["exact_match"] == 50.0 and found["f1"] == pytest.approx(100 * (1 + 2 / 3 + 1 + 0) / 4)
    assert found["answered_exact_match"] == 50.0 and found["unanswered_exact_match"] == 50.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30))
def test_confusions_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    said, true = [a for a, _ in pairs], [b for _, b in pairs]
    counts = confusion(said, true, 5)
    assert counts == sklearn.confusion_matrix(true, said, labels=range(5)).tolist()
    rows = {row["label"]: row for row in by_label(counts, list("abcde"))}
    expected = sklearn.precision_recall_fscore_support(true, said, labels=range(5), zero_division=0)
    for place, label in enumerate("abcde"):
        if place in said or place in true:
            row = rows.pop(label)
            found = [row["precision"], row["recall"], row["f1"], row["count"]]
            assert found == pytest.approx([column[place] for column in expected])
    assert not rows, "labels that are nowhere are left out"


@given(st.lists(st.text("ab c,the", max_size=12), min_size=1, max_size=5))
def test_an_answer_is_right_to_itself(answers: list[str]) -> None:
    found = squad(answers, [[answer] for answer in answers])
    assert found["exact_match"] == 100.0 and found["f1"] == 100.0


def test_texts_by_the_libraries() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    draw = random.Random(0)
    words = "the cat sat on a mat and saw no dog".split()
    said = [" ".join(draw.choices(words, k=8)) for _ in range(20)]
    one = [" ".join(draw.choices(words, k=8)) for _ in range(20)]
    two = [" ".join(draw.choices(words, k=7)) for _ in range(20)]
    assert bleu(said, one)["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [one]).score)
    both = bleu(said, [list(pair) for pair in zip(one, two, strict=True)])
    assert both["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [one, two]).score)
    assert "tok:13a" in str(both["signature"])
    assert chrf(said, one)["chrf"] == pytest.approx(sacrebleu.corpus_chrf(said, [one]).score)
    assert bleu(one, one)["bleu"] == pytest.approx(100) and rouge(one, one)["rougeL"] == pytest.approx(1)
    assert rouge(["the cat sat"], ["the cat ran"])["rouge1"] == pytest.approx(2 / 3)
    assert rouge(["the cat sat"], [["a dog", "the cat sat"]])["rouge2"] == pytest.approx(1)
    assert rouge([""], ["the cat"])["rouge1"] == 0


def test_perplexity_is_the_exponent_of_the_mean() -> None:
    assert perplexity(10 * math.log(7), 10) == pytest.approx(7)
    assert perplexity(1e6, 10) == math.inf


@pytest.mark.parametrize("metric", [accuracy, f1, matthews, pearson, entity_f1, squad, bleu, chrf, rouge])
def test_uneven_and_empty_input_is_refused(metric) -> None:
    for said, true in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(InputError):
            metric(said, true)
