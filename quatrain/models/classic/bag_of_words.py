"""A linear classifier on bags of words: naive Bayes, or logistic regression on TF-IDF.

    logits = sum over the n-grams of the text of value(n-gram) · W[:, n-gram] + b

Both are linear, so that one model holds them: naive Bayes' W are log-probabilities of the n-grams in each class and b
those of the classes (Manning, Raghavan and Schütze 2008, chapter 13), logistic regression's are fitted by scikit-learn.
n-grams are those of the recipe's tokens (`_counts`); special tokens are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.core.libraries import require
from quatrain.core.settings import Listing
from quatrain.models import text_vectors
from quatrain.models.classic import _counts
from quatrain.models.classic._counts import Array, Table
from quatrain.models.classic.base import ClassicConfig, ClassicModel

Weighting = Literal["counts", "binary", "tf_idf", "tf_idf_course"]
Classifier = Literal["naive_bayes", "logistic_regression"]


class BagOfWordsConfig(ClassicConfig):
    """The configuration of a linear classifier on the n-grams of up to `ngrams` tokens, `features` of each length."""

    model_type: Literal["bag-of-words"] = "bag-of-words"
    head: Literal["sequence_classification"] = "sequence_classification"
    problem_type: str = "single_label"
    ngrams: int = Field(default=1, ge=1, le=8)
    weighting: Weighting = "counts"
    classifier: Classifier = "naive_bayes"
    features: Listing[int] = ()
    ignored_ids: Listing[int] = ()


class BagOfWords(ClassicModel):
    """A linear classifier on bags of n-grams of token ids. `fit` builds one."""

    Config: ClassVar[type[ClassicConfig]] = BagOfWordsConfig
    config: BagOfWordsConfig
    idf: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, config: BagOfWordsConfig):
        super().__init__(config)
        for order, size in enumerate(config.features, 1):
            self.register_buffer(f"keys_{order}", torch.zeros(size, dtype=torch.long))
        total = sum(config.features)
        self.register_buffer("idf", torch.ones(total))
        self.register_buffer("weight", torch.zeros(config.num_labels, total))
        self.register_buffer("bias", torch.zeros(config.num_labels))

    @classmethod
    def fit(
        cls,
        documents: Sequence[Sequence[int]],
        labels: Sequence[int],
        names: Sequence[str],
        vocab_size: int,
        *,
        ngrams: int = 1,
        weighting: Weighting = "counts",
        classifier: Classifier = "naive_bayes",
        strength: float = 1.0,
        ignored_ids: Sequence[int] = (),
    ) -> Self:
        """Learns from documents of ids and the numbers of their labels.

        `strength` is what naive Bayes adds to each count, or logistic regression's inverse regularization C. Raises
        InputError for no documents, or one class.
        """
        if not len(documents) or len(set(labels)) < 2:
            raise InputError("A classifier needs documents of at least two classes.")
        border = vocab_size  # A token between documents, over which no n-gram reaches.
        kept = [[token for token in ids if token not in set(ignored_ids)] for ids in documents]
        stream = np.concatenate([np.array([border, *ids], dtype=np.int64) for ids in kept])
        tables = _counts.count(stream, vocab_size + 1, ngrams, bos_id=border).tables
        tables = _without_border(tables, border, vocab_size + 1)
        config = BagOfWordsConfig(
            vocab_size=vocab_size,
            labels=tuple(names),
            ngrams=ngrams,
            weighting=weighting,
            classifier=classifier,
            features=tuple(len(table) for table in tables),
            ignored_ids=tuple(ignored_ids),
        )
        model = cls(config)
        for order, table in enumerate(tables, 1):
            getattr(model, f"keys_{order}").copy_(torch.from_numpy(table.keys))
        counts = model.count_matrix(kept)
        if weighting.startswith("tf_idf"):
            formula: Any = "course" if weighting == "tf_idf_course" else "sklearn"
            frequencies = text_vectors.document_frequencies(counts)
            model.idf.copy_(torch.from_numpy(text_vectors.idf(frequencies, len(documents), formula)))
        weight, bias = _CLASSIFIERS[classifier](model.weighted(counts), np.asarray(labels), len(names), strength)
        model.weight.copy_(torch.from_numpy(weight))
        model.bias.copy_(torch.from_numpy(bias))
        return model.eval()

    # Features

    def features(self, ids: Sequence[int]) -> list[int]:
        """The numbers of the n-grams of a document that the model knows, one for each occurrence."""
        size = self.config.vocab_size + 1
        tokens = np.array([token for token in ids if token not in set(self.config.ignored_ids)], dtype=np.int64)
        found, offset, places = [], 0, np.zeros(len(tokens), dtype=np.int64)
        for order, count in enumerate(self.config.features, 1):
            keys = getattr(self, f"keys_{order}").numpy()
            before = places if order == 1 else np.concatenate([[-1], places[:-1]])[: len(tokens)]
            places = np.where(before < 0, -1, Table(keys, keys, keys).find(before * size + tokens))
            found += (places[places >= 0] + offset).tolist()
            offset += count
        return found

    def count_matrix(self, documents: Sequence[Sequence[int]]) -> Any:
        """How often each document has each n-gram: sparse (D, features)."""
        found = [self.features(ids) for ids in documents]
        return text_vectors.count_matrix(found, sum(self.config.features), binary=self.config.weighting == "binary")

    def weighted(self, counts: Any) -> Any:
        """The matrix that the classifier reads: counts, or TF-IDF; scikit-learn's has rows of length 1."""
        if not self.config.weighting.startswith("tf_idf"):
            return counts
        return text_vectors.tf_idf(counts, self.idf.double().numpy(), normalize=True)

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        segments: Tensor | None = None,
        adapters: Sequence[str | None] | None = None,
        **more: Any,
    ) -> Tensor:
        """input_ids (B, T) to logits (B, L); `segments` 0 is padding."""
        rows = input_ids.cpu()
        kept = torch.ones_like(rows, dtype=torch.bool) if segments is None else segments.cpu() > 0
        found = []
        for ids, known in zip(rows, kept, strict=True):
            numbers, often = np.unique(np.array(self.features(ids[known].tolist()), dtype=np.int64), return_counts=True)
            values = torch.from_numpy(often.astype(np.float32))
            if self.config.weighting == "binary":
                values = torch.ones_like(values)
            columns = torch.from_numpy(numbers)
            if self.config.weighting.startswith("tf_idf"):
                values = nn.functional.normalize(values * self.idf[columns], dim=0)
            found.append(self.weight[:, columns] @ values + self.bias)
        return torch.stack(found)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **inputs: Any) -> tuple[Tensor, Tensor | None]:
        """input_ids (B, T) to logits (B, L) and, with labels (B,), the loss of each text."""
        logits = self.hidden_states(input_ids, **inputs)
        return logits, None if labels is None else nn.functional.cross_entropy(logits, labels, reduction="none")

    # Facts

    def num_parameters(self, *, trainable: bool = False) -> int:
        """Weights and biases; none of them trains by gradient."""
        return 0 if trainable else self.weight.numel() + self.bias.numel()

    def describe(self) -> dict[str, Any]:
        return {
            "classifier": self.config.classifier,
            "weighting": self.config.weighting,
            "labels": ", ".join(self.config.labels),
            "vocabulary": self.config.vocab_size,
            "parameters": self.num_parameters(),
            "n-grams": [{"n": order, "features": count} for order, count in enumerate(self.config.features, 1)],
        }

    @classmethod
    def from_tensors(cls, config: BagOfWordsConfig, tensors: Mapping[str, Tensor]) -> Self:
        if len(config.features) != config.ngrams:
            raise InputError(f"features: {len(config.features)} numbers; must be ngrams = {config.ngrams}")
        return super().from_tensors(config, tensors)


def _without_border(tables: Sequence[Table], border: int, size: int) -> list[Table]:
    """The tables without n-grams that contain the token between documents, and without tokens that do not occur."""
    found: list[Table] = []
    places = np.zeros(1, dtype=np.int64)
    for order, table in enumerate(tables, 1):
        context = np.zeros(len(table), dtype=np.int64) if order == 1 else places[table.keys // size]
        kept = (context >= 0) & (table.counts > 0) & (table.keys % size != border)
        found.append(Table(context[kept] * size + table.keys[kept] % size, table.counts[kept], table.suffix[kept]))
        places = np.where(kept, np.cumsum(kept) - 1, -1)
    return found


def naive_bayes(matrix: Any, labels: Array, classes: int, strength: float) -> tuple[Array, Array]:
    """Multinomial naive Bayes: log p(feature | class) with `strength` added to each count, and log p(class)."""
    sums = np.stack([np.asarray(matrix[labels == each].sum(axis=0)).ravel() for each in range(classes)]) + strength
    often = np.bincount(labels, minlength=classes)
    with np.errstate(divide="ignore"):
        return np.log(sums / sums.sum(axis=1, keepdims=True)), np.maximum(np.log(often / often.sum()), -1e30)


def logistic_regression(matrix: Any, labels: Array, classes: int, strength: float) -> tuple[Array, Array]:
    """Logistic regression by scikit-learn, with a squared penalty of inverse strength C."""
    with require("logistic_regression", "scikit-learn", "classic", ', or take classifier = "naive_bayes".'):
        from sklearn.linear_model import LogisticRegression
    fitted = LogisticRegression(C=strength, max_iter=1000).fit(matrix, labels)
    weight, bias = np.zeros((classes, matrix.shape[1])), np.full(classes, -1e30)
    if len(fitted.classes_) == 2:  # One row tells two classes apart.
        weight[fitted.classes_[1]], bias[fitted.classes_] = fitted.coef_[0], (0.0, fitted.intercept_[0])
    else:
        weight[fitted.classes_], bias[fitted.classes_] = fitted.coef_, fitted.intercept_
    return weight, bias


_CLASSIFIERS = {"naive_bayes": naive_bayes, "logistic_regression": logistic_regression}

MODEL = BagOfWords
