"""Texts as vectors: the formulas against scikit-learn's, the course's 0 for a word of every document, search."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.models import text_vectors as tv
from quatrain.models.classic.bag_of_words import BagOfWords

text = pytest.importorskip("sklearn.feature_extraction.text")
DOCUMENTS = ["The cat sat on the mat", "The dog sat on the log", "the cats and the dogs are friends of the house"]


def counts_of(documents: list[str], ngrams: int = 1):
    words = [tv.words_of(each, ngrams=ngrams) for each in documents]
    vocabulary = tv.Vocabulary(words)
    return vocabulary, tv.count_matrix([vocabulary.encode(each) for each in words], len(vocabulary))


@pytest.mark.parametrize("ngrams", [1, 2])
def test_counts_and_scikit_learns_formula_are_scikit_learns(ngrams):
    vocabulary, counts = counts_of(DOCUMENTS, ngrams)
    for vectorizer, ours in (
        (text.CountVectorizer(ngram_range=(1, ngrams)), counts),
        (
            text.TfidfVectorizer(ngram_range=(1, ngrams)),
            tv.tf_idf(counts, tv.idf(tv.document_frequencies(counts), 3, "sklearn"), normalize=True),
        ),
    ):
        theirs = vectorizer.fit_transform(DOCUMENTS)
        columns = [vectorizer.vocabulary_[word] for word in vocabulary.itos[1:]]
        assert np.allclose(ours.toarray()[:, 1:], theirs.toarray()[:, columns])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6), min_size=1, max_size=6))
def test_a_word_of_every_document_has_no_weight_in_the_courses_formula(documents):
    documents = [["the", *each] for each in documents]
    vocabulary = tv.Vocabulary(documents)
    counts = tv.count_matrix([vocabulary.encode(each) for each in documents], len(vocabulary))
    frequencies = tv.document_frequencies(counts)
    course, sklearn = (tv.idf(frequencies, len(documents), formula) for formula in ("course", "sklearn"))
    assert course[vocabulary.stoi["the"]] == 0 < sklearn[vocabulary.stoi["the"]]
    weighted = tv.tf_idf(counts, course).toarray()
    for row, document in zip(weighted, documents, strict=True):
        for word in set(document):
            inside = sum(word in each for each in documents)
            assert row[vocabulary.stoi[word]] == pytest.approx(document.count(word) * np.log(len(documents) / inside))


def test_a_vocabulary_maps_both_ways_and_knows_what_it_does_not_know():
    vocabulary = tv.Vocabulary([["b", "a", "a"], ["c", "a", "b"]], min_count=2)
    assert vocabulary.itos == ["<unk>", "a", "b"] and vocabulary.stoi["b"] == 2 and len(vocabulary) == 3
    assert vocabulary.decode(vocabulary.encode(["a", "zebra", "b"])) == ["a", "<unk>", "b"]
    assert len(tv.Vocabulary([["b", "a", "a"]], max_size=2)) == 2
    hot = tv.one_hot([2, 0], 3)
    assert hot.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert not tv.count_matrix([[], [1]], 3).toarray()[0].any()


def test_hashing_is_the_same_in_every_process():
    code = "from quatrain.models.text_vectors import hashed; print(hashed([['cat', 'dog']], 1000))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.strip() == str(tv.hashed([["cat", "dog"]], 1000))


def test_lsa_is_the_singular_value_decomposition():
    _, counts = counts_of(DOCUMENTS)
    vectors, directions = tv.lsa(counts.astype(float), 2)
    _, values, _ = np.linalg.svd(counts.toarray(), full_matrices=False)
    assert np.allclose(np.linalg.norm(vectors, axis=0), values[:2], rtol=1e-4)
    assert np.allclose(counts @ directions.T, vectors, atol=1e-8)
    with pytest.raises(InputError, match="from 1 to 2"):
        tv.lsa(counts, 9)


@pytest.mark.parametrize("dimensions", [None, 2])
def test_search_finds_the_document(dimensions):
    index = tv.DocumentSearch(DOCUMENTS, dimensions=dimensions)
    best = index.search("a dog on a log")[0][0]
    assert best == 1 if dimensions is None else best in (0, 1), "two dimensions do not tell a cat on a mat from it"
    assert index.search("zebra") == [] and index.search("") == []
    with pytest.raises(InputError, match="no documents"):
        tv.DocumentSearch([])


def random_texts(seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 60)
    return [(rng.integers(0, 8, rng.integers(1, 9)) + 4 * label).tolist() for label in labels], labels.tolist()


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("weighting", "classifier"), [("counts", "naive_bayes"), ("binary", "naive_bayes"),
                                                       ("tf_idf", "logistic_regression")])  # fmt: skip
def test_classifiers_equal_scikit_learns(weighting, classifier, classes, tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB

    documents, labels = random_texts()
    labels = [min(each, classes - 1) for each in labels]
    model = BagOfWords.fit(documents, labels, list("xyz")[:classes], 20, ngrams=2, weighting=weighting,
                           classifier=classifier)  # fmt: skip
    words = [" ".join(map(str, each)) for each in documents]
    pattern = r"\S+"
    if weighting == "tf_idf":
        vectorizer, reference = (
            text.TfidfVectorizer(ngram_range=(1, 2), token_pattern=pattern),
            LogisticRegression(max_iter=1000),
        )
    else:
        vectorizer = text.CountVectorizer(ngram_range=(1, 2), token_pattern=pattern, binary=weighting == "binary")
        reference = MultinomialNB()
    reference.fit(vectorizer.fit_transform(words), labels)
    fresh, _ = random_texts(1)
    theirs = reference.predict_proba(vectorizer.transform([" ".join(map(str, each)) for each in fresh]))
    import torch

    width = max(map(len, fresh))
    ids = torch.tensor([each + [0] * (width - len(each)) for each in fresh])
    segments = torch.tensor([[1] * len(each) + [0] * (width - len(each)) for each in fresh])
    assert np.allclose(model(ids, segments=segments)[0].softmax(-1).numpy(), theirs, atol=2e-3)
    model.save(tmp_path)
    from quatrain.loading.model import load_model

    assert torch.equal(load_model(tmp_path)[0](ids, segments=segments)[0], model(ids, segments=segments)[0])


def test_one_class_is_refused():
    with pytest.raises(InputError, match="two classes"):
        BagOfWords.fit([[1], [2]], [0, 0], ["x", "y"], 5)
