"""Classic methods that scores are printed beside: fast to train, and hard to beat with little data.

TF-IDF and the linear model are scikit-learn's (the extra `classic`), BM25 is bm25s' (`rag`), n-grams are ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from quatrain.core.libraries import require


def tfidf_classifier(texts: Sequence[str], labels: Sequence[str], questions: Sequence[str]) -> list[str]:
    """The labels that TF-IDF of words and logistic regression, trained on `texts`, give to `questions`.

    Both with scikit-learn's defaults. Raises InputError where it is not installed.
    """
    with require("TF-IDF with logistic regression", "scikit-learn", "classic"):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    words = TfidfVectorizer()
    table = words.fit_transform(texts)
    if len(set(labels)) < 2:
        return [labels[0]] * len(questions)
    model = LogisticRegression(max_iter=1000).fit(table, labels)
    return [str(label) for label in model.predict(words.transform(questions))]


def word_tags(sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> dict[str, str]:
    """The tag that each word has most often."""
    counts: dict[str, Counter[str]] = {}
    for words, own in zip(sentences, tags, strict=True):
        for word, tag in zip(words, own, strict=True):
            counts.setdefault(word, Counter())[tag] += 1
    return {word: each.most_common(1)[0][0] for word, each in counts.items()}


def bm25_rankings(documents: Mapping[str, str], questions: Sequence[str], depth: int) -> list[list[str]]:
    """The ids of the `depth` best documents for each question by BM25.

    Lucene's form, k1 1.5, b 0.75, without English stop words. Robertson & Zaragoza 2009; bm25s, Lù 2024 (arXiv
    2407.03618). Raises InputError where bm25s is not installed.
    """
    from quatrain.retrieval.words import import_bm25s

    bm25s, names = import_bm25s(), list(documents)
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(documents.values()), stopwords="en", show_progress=False), show_progress=False)
    asked = bm25s.tokenize(list(questions), stopwords="en", return_ids=False, show_progress=False)
    places, _ = index.retrieve(asked, k=min(depth, len(names)), show_progress=False)
    return [[names[place] for place in row] for row in places.tolist()]


def ngram_losses(learned: bytes, texts: Sequence[bytes], order: int) -> list[float]:
    """The loss of each text in nats, by a byte n-gram model with modified Kneser-Ney smoothing of `learned`.

    Every byte is predicted; the first ones of a text follow a byte that UTF-8 never has.
    """
    from quatrain.models.classic.ngram import NgramModel

    begin = 255
    ids = np.frombuffer(bytes([begin]) + learned, dtype=np.uint8).astype(np.int64)
    model = NgramModel.fit(ids, 256, order, bos_token_id=begin)
    losses = []
    for text in texts:
        own = np.frombuffer(bytes([begin]) + text, dtype=np.uint8).astype(np.int64)
        losses.append(float(-model.token_log_probs(own, 1).sum()))
    return losses


def mean_feature_classifier(
    recordings: Sequence[np.ndarray], labels: Sequence[str], questions: Sequence[np.ndarray]
) -> list[str]:
    """The labels that logistic regression on mean and deviation of each band, trained on `recordings`, gives.

    Recordings are features (bands, frames). Raises InputError where scikit-learn is not installed.
    """
    with require("logistic regression", "scikit-learn", "classic"):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

    def table(rows: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([np.concatenate([row.mean(1), row.std(1)]) for row in rows])

    if len(set(labels)) < 2:
        return [labels[0]] * len(questions)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(table(recordings), labels)
    return [str(label) for label in model.predict(table(questions))]
