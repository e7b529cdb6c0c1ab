"""Smoothing against the published formulas, written out, and against NLTK where its formulas are right; ARPA files."""

from __future__ import annotations

import gzip
import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from quatrain.core.errors import InputError
from quatrain.models.arpa import read_arpa, write_arpa
from quatrain.models.classic._smoothing import SmoothingOptions
from quatrain.models.classic.ngram import NgramModel

SENTENCES = [
    line.split()
    for line in """the cat sat on the mat
the dog sat on the log
a cat and a dog met on the road
the cat saw the dog and the dog saw the cat
on the road the cat met a cat
a dog sat and a cat sat
the mat and the log met the road
a cat saw a log on a mat""".splitlines()
]
WORDS = ["<s>", "</s>", "<unk>", *sorted({word for line in SENTENCES for word in line})]
IDS = {word: number for number, word in enumerate(WORDS)}
STREAM = [IDS[word] for line in SENTENCES for word in ["<s>", *line, "</s>"]]


class Formulas:
    """Modified Kneser-Ney as Chen and Goodman (1999) and Heafield et al. (2013, KenLM) write it, by dictionaries."""

    def __init__(self, order: int):
        raw: dict[int, Counter] = {n: Counter() for n in range(1, order + 1)}
        for line in SENTENCES:
            text = ["<s>", *line, "</s>"]
            for n in range(1, order + 1):
                raw[n].update(tuple(text[i : i + n]) for i in range(len(text) - n + 1))
        self.adjusted = {order: raw[order]}
        for n in range(1, order):
            before = defaultdict(set)
            for gram in raw[n + 1]:
                before[gram[1:]].add(gram[0])
            self.adjusted[n] = {
                gram: count if gram[0] == "<s>" else len(before[gram]) for gram, count in raw[n].items()
            }
        self.adjusted[1] = {gram: count for gram, count in self.adjusted[1].items() if gram != ("<s>",)}
        self.discounts = {}
        for n, counts in self.adjusted.items():
            t = [sum(count == number for count in counts.values()) for number in range(5)]
            if all(t[1:]):
                y = t[1] / (t[1] + 2 * t[2])
                found = [k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3)]
            else:
                found = [0.5, 1.0, 1.5]
            self.discounts[n] = [0.0, *found]

    def discount(self, n: int, count: float) -> float:
        return self.discounts[n][min(int(count), 3)]

    def p(self, word: str, history: tuple[str, ...]) -> float:
        n = len(history) + 1
        after = {gram[-1]: count for gram, count in self.adjusted[n].items() if gram[:-1] == history}
        total = sum(after.values())
        shorter = self.p(word, history[1:]) if history else 1 / (len(WORDS) - 1)
        if not total:
            return shorter
        backoff = sum(self.discount(n, count) for count in after.values()) / total
        count = after.get(word, 0)
        return max(count - self.discount(n, count), 0) / total + backoff * shorter


@pytest.mark.parametrize("order", [1, 2, 3])
def test_modified_kneser_ney_is_the_published_formula(order):
    model = NgramModel.fit(STREAM, len(WORDS), order, bos_token_id=0)
    formulas = Formulas(order)
    known = [("<s>",), ("the",), ("<s>", "the"), ("cat", "sat"), ("dog", "<unk>"), ("mat", "log"), ("<unk>", "<unk>")]
    for history in known:
        history = history[-(order - 1) :] if order > 1 else ()
        row = [-1] * (order - 1 - len(history)) + [IDS[word] for word in history]
        found = np.exp(model.log_probs(np.array([row], dtype=np.int64))[0].astype(np.float64))
        expected = [0.0, *(formulas.p(word, history) for word in WORDS[1:])]
        assert np.allclose(found, expected, atol=1e-6), history


def test_a_text_is_as_likely_as_the_formula_says():
    model, formulas = NgramModel.fit(STREAM, len(WORDS), 3, bos_token_id=0), Formulas(3)
    text = ["<s>", "the", "zebra", "sat", "on", "the", "cat", "</s>"]
    ids = np.array([IDS.get(word, IDS["<unk>"]) for word in text])
    seen = [word if word in IDS else "<unk>" for word in text]
    expected = [math.log(formulas.p(seen[i], tuple(seen[max(0, i - 2) : i]))) for i in range(1, len(seen))]
    assert np.allclose(model.token_log_probs(ids, 1), expected, atol=1e-5)
    assert np.isfinite(model.token_log_probs(ids, 1)).all(), "unknown words are finite"


def nltk_counts(order: int):
    lm = pytest.importorskip("nltk.lm")
    util = pytest.importorskip("nltk.util")
    text = [word for line in SENTENCES for word in [*line, "</s>"]]
    vocabulary = lm.Vocabulary([word for word in WORDS[1:] if word != "<unk>"], unk_label="<unk>")
    grams = [[gram for n in range(1, order + 1) for gram in util.ngrams(text, n)]]
    ids = [IDS[word] - 1 for word in text]
    return lm, vocabulary, grams, ids


def row_of(model: NgramModel, *history: str) -> np.ndarray:
    row = [IDS[word] - 1 for word in history]
    row = [-1] * (model.config.order - 1 - len(row)) + row
    return np.exp(model.log_probs(np.array([row], dtype=np.int64))[0].astype(np.float64))


def test_maximum_likelihood_and_additive_smoothing_equal_nltk():
    lm, vocabulary, grams, ids = nltk_counts(2)
    for method, reference, options in (
        ("mle", lm.MLE(2, vocabulary=vocabulary), SmoothingOptions()),
        ("add_k", lm.Lidstone(0.3, 2, vocabulary=vocabulary), SmoothingOptions(k=0.3)),
        ("add_k", lm.Laplace(2, vocabulary=vocabulary), SmoothingOptions(k=1.0)),
    ):
        reference.fit(grams)
        model = NgramModel.fit(ids, len(WORDS) - 1, 2, method, options=options)
        for history in ("the", "cat", "</s>"):
            expected = [reference.score(word, [history]) for word in WORDS[1:]]
            assert np.allclose(row_of(model, history), expected, atol=1e-6), (method, history)


@pytest.mark.parametrize(("method", "name"), [("absolute_discounting", "AbsoluteDiscountingInterpolated"),
                                              ("kneser_ney", "KneserNeyInterpolated")])  # fmt: skip
def test_discounting_equals_nltk_above_the_single_words(method, name):
    """NLTK does not smooth single words, so that unseen ones have probability 0; what it adds above is equal."""
    lm, vocabulary, grams, ids = nltk_counts(2)
    reference = getattr(lm, name)(2, discount=0.4, vocabulary=vocabulary)
    reference.fit(grams)
    model = NgramModel.fit(ids, len(WORDS) - 1, 2, method, options=SmoothingOptions(discount=0.4))
    single = row_of(model) if model.config.order == 1 else np.exp(model.part(1, "log_probs").astype(np.float64))
    for history in ("the", "cat", "saw"):
        weight = math.exp(model.part(1, "log_weights")[IDS[history] - 1])
        _, gamma = reference.estimator.alpha_gamma("the", (history,))
        assert weight == pytest.approx(gamma, abs=1e-6)
        above = row_of(model, history) - weight * single
        expected = [
            reference.score(word, [history]) - gamma * reference.estimator.unigram_score(word) for word in WORDS[1:]
        ]
        assert np.allclose(above, expected, atol=1e-6)
    assert row_of(model, "the")[IDS["<unk>"] - 1] > 0 == reference.score("<unk>", ["the"])


def test_katz_keeps_large_counts_and_gives_the_rest_to_what_was_not_seen():
    ids = [0, 1] * 20 + [0, 2, 0, 3, 1, 1, 2, 2, 4, 0, 5, 1, 6]
    model = NgramModel.fit(ids, 8, 2, "katz")
    row = np.exp(model.log_probs(np.array([[0]]))[0].astype(np.float64))
    pairs = Counter(itertools.pairwise(ids))
    total = sum(count for (first, _), count in pairs.items() if first == 0)
    assert row[1] == pytest.approx(pairs[0, 1] / total, abs=1e-6), "a count above 5 is not discounted"
    assert all(row[word] < 1 / total for word in (2, 3, 5)), "what was seen once is"
    unseen = [0, 4, 6, 7]
    single = np.exp(model.part(1, "log_probs").astype(np.float64))
    assert np.allclose(row[unseen] / single[unseen], row[0] / single[0], atol=1e-5), "in the shares of single tokens"


def test_interpolation_weights_grow_with_the_text():
    rng = np.random.default_rng(0)
    text = np.tile(rng.integers(0, 20, 200), 10)
    much, little = (NgramModel.fit(ids, 20, 3, "jelinek_mercer").config.details for ids in (text, text[:100]))
    assert much[2]["lambda"] > 0.9 > little[2]["lambda"]


@pytest.mark.parametrize("method", ["modified_kneser_ney", "katz", "jelinek_mercer", "backoff", "mle"])
def test_arpa_files_hold_the_model(method, tmp_path):
    model = NgramModel.fit(STREAM, len(WORDS), 3, method, bos_token_id=0)
    write_arpa(model, WORDS, tmp_path / "m.arpa")
    again, words = read_arpa(tmp_path / "m.arpa")
    assert words == WORDS and again.config.bos_token_id == 0 and again.config.eos_token_id == 1
    text = np.array(STREAM[:40])
    assert np.allclose(again.token_log_probs(text)[1:], model.token_log_probs(text)[1:], atol=1e-4)
    with gzip.open(tmp_path / "m.arpa.gz", "wb") as file:
        file.write((tmp_path / "m.arpa").read_bytes())
    assert read_arpa(tmp_path / "m.arpa.gz")[0].config.ngrams == model.config.ngrams


FIXTURE = """\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.5
-0.5\ta\t-0.25
-0.7\t</s>

\\2-grams:
-0.2\t<s> a
-0.3\ta </s>

\\end\\
"""


def test_an_arpa_file_by_another_program_is_read(tmp_path):
    (tmp_path / "x.arpa").write_text(FIXTURE)
    model, words = read_arpa(tmp_path / "x.arpa")
    ids = {word: number for number, word in enumerate(words)}
    found = model.token_log_probs(np.array([ids["<s>"], ids["a"], ids["a"], ids["<unk>"]]), 1) / math.log(10)
    assert np.allclose(found, [-0.2, -0.25 - 0.5, -0.25 - 1.0], atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("ngram 2=2", "ngram 2=3", "the header says 3"), ("\\end\\", "", "cut"), ("<s> a", "<s> b", "line 12"),
     ("-0.3\ta </s>", "x\ta </s>", "line 13"), ("-0.3\ta </s>", "-0.3\t<s> a", "twice"),
     ("\\2-grams", "\\3-grams", "2-grams must come")],
)  # fmt: skip
def test_damaged_arpa_files_are_named(old, new, message, tmp_path):
    (tmp_path / "x.arpa").write_text(FIXTURE.replace(old, new))
    with pytest.raises(InputError, match=message):
        read_arpa(tmp_path / "x.arpa")


def test_tokens_with_spaces_survive_and_add_k_has_no_arpa(tmp_path):
    words = ["a", " ", "\n", "", "<0x41>", "é"]
    model = NgramModel.fit([0, 1, 2, 3, 5, 0, 1], 6, 2)
    write_arpa(model, [*words[:4], "b", "é"], tmp_path / "m.arpa")
    assert read_arpa(tmp_path / "m.arpa")[1] == [*words[:4], "b", "é"]
    with pytest.raises(InputError, match="add_k"):
        write_arpa(NgramModel.fit([0, 1], 6, 2, "add_k"), words, tmp_path / "n.arpa")
