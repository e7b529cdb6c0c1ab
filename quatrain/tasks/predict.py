"""Predictions on new inputs: classes with probabilities, tags of words, answers, choices, texts, vectors.

    predictor = Predictor.load("runs/sentiment/model")
    for prediction in predictor.predict(["A fine film.", "Dull."]):
        print(prediction.value["label"], prediction.value["score"])

The head of the model determines the task. Labels and probabilities are those of transformers' pipelines.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.stack import Model
from quatrain.tasks.extractive_qa import STRIDE
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.answers import ExtractiveQA, best_answers
from quatrain.training.objectives.base import forward
from quatrain.training.objectives.classification import MultipleChoice
from quatrain.training.objectives.tagging import TokenClassification
from quatrain.training.objectives.texts import EncodedText, TextObjective

BATCH = 32
"""Inputs of one batch."""

TOP = 5
"""Tokens that are returned for a mask."""

Input = str | Mapping[str, Any]
"""A text, or a table of the fields that the task has."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for one input. `value` has JSON's types, by head:

    sequence_classification: `label` and `score`, and `scores` of all labels; of several labels at once `labels`, and
    of numbers `scores` alone. token_classification: `words`, each with `word`, `label`, `score`, `start`, `end`.
    question_answering: `answer`, `score`. multiple_choice: `choice`, its `number` from 0, `scores`. seq2seq: `text`.
    embedding: `vector`. masked: `masks`, the likeliest tokens of each.

    `cut` is the number of tokens beyond the model's context, which were not read.
    """

    value: dict[str, Any]
    cut: int = 0


HeadReader = Callable[["Predictor", Sequence[Mapping[str, Any]]], list[Prediction]]
"""Predicts a batch of inputs with one kind of head."""

FIELDS: dict[str, tuple[str, ...]] = {}
"""The heads that predict, and the fields of their inputs; those with a "?" may be absent."""
_READERS: dict[str, HeadReader] = {}


def _predicts(head: str, *fields: str) -> Callable[[HeadReader], HeadReader]:
    """Register a method as the reader of a head, whose inputs have these fields."""

    def register(reader: HeadReader) -> HeadReader:
        FIELDS[head], _READERS[head] = fields, reader
        return reader

    return register


class Predictor:
    """Predicts with a model that has the head of a task, and its tokenizer."""

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer | None,
        *,
        target_tokenizer: Tokenizer | None = None,
        source_prefix: str = "",
        max_new_tokens: int = 120,
    ):
        """For an encoder-decoder: `target_tokenizer` decodes its answers, `source_prefix` stands before each source.

        Raises InputError for a model whose head predicts no labels, and for one without a tokenizer.
        """
        head = model.config.head
        if head not in FIELDS:
            hint = "; `quatrain generate` continues a text, `quatrain chat` answers" if head == "causal" else ""
            raise InputError(
                f"The model has the head {head}, which predicts no labels{hint}. Heads: {', '.join(FIELDS)}."
            )
        if tokenizer is None:
            raise InputError("The model has no tokenizer: a text cannot be read without its tokens.")
        self.model, self.tokenizer = model.eval(), tokenizer
        self.source_prefix, self.max_new_tokens = source_prefix, max_new_tokens
        self.target_tokenizer = target_tokenizer
        self._read = _READERS[head]

    @classmethod
    def load(cls, model: str | Path, **options: Any) -> Predictor:
        """The predictor of a model folder, an adapter, a run or a hub id; `options` as for the class."""
        from quatrain.loading.model import ResolvedModel, load_model

        resolved = ResolvedModel.of(model)
        network, tokenizer = load_model(resolved)
        target = resolved.tokenizer(target=True) if network.config.head == "seq2seq" else None
        return cls(network, tokenizer, target_tokenizer=target, **options)

    @property
    def config(self) -> ModelConfig:
        """The configuration of the model."""
        return self.model.config

    def predict(self, inputs: Iterable[Input], *, batch_size: int = BATCH) -> Iterator[Prediction]:
        """A prediction for each input, in order; inputs are read a batch at a time.

        Raises InputError for an input that lacks a field.
        """
        rows = (self._fields(each, number) for number, each in enumerate(inputs, 1))
        while batch := list(itertools.islice(rows, batch_size)):
            with torch.inference_mode():
                yield from self._read(self, batch)

    def _fields(self, given: Input, number: int) -> Mapping[str, Any]:
        allowed = FIELDS[self.config.head]
        fields: Mapping[str, Any] = {allowed[0]: given} if isinstance(given, str) else given
        required = {name for name in allowed if name[-1] != "?"}
        if "words?" in allowed and "words" in fields:
            required = {"words"}
        if missing := sorted(required - {name for name, value in fields.items() if value}):
            raise InputError(
                f"input {number}: {', '.join(missing)} missing or empty; the head {self.config.head} reads "
                f"{', '.join(name.rstrip('?') for name in allowed)}"
            )
        return fields

    def _limit(self) -> int:
        return self.config.context_length

    def _logits(self, objective: TextObjective, rows: Sequence[EncodedText]) -> Tensor:
        batch = objective.batch(rows, None).to(self.model.device)
        logits: Tensor = forward(self.model, batch)[0]
        return logits.float().cpu()

    @_predicts("sequence_classification", "text", "text_pair?")
    def _sequence_classification(self, inputs: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        objective = TextObjective(self.tokenizer, max_length=self._limit())
        rows = [objective.read(each["text"], each.get("text_pair")) for each in inputs]
        logits = self._logits(objective, rows)
        values = (self._classes(row) for row in logits)
        return [Prediction(value, row.cut) for value, row in zip(values, rows, strict=True)]

    def _classes(self, logits: Tensor) -> dict[str, Any]:
        labels, problem_type = self.config.labels, self.config.problem_type
        if problem_type == "regression":
            return {"scores": dict(zip(labels, logits.tolist(), strict=True))}
        if problem_type == "multi_label":
            scores = dict(zip(labels, logits.sigmoid().tolist(), strict=True))
            return {"labels": [label for label, score in scores.items() if score > 0.5], "scores": scores}
        scores = dict(zip(labels, logits.softmax(-1).tolist(), strict=True))
        best = labels[int(logits.argmax())]
        return {"label": best, "score": scores[best], "scores": scores}

    @_predicts("token_classification", "text", "words?")
    def _token_classification(self, inputs: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        limit, labels = self._limit(), self.config.labels
        objective = TokenClassification(self.tokenizer, labels, max_length=limit, stride=limit // 4)
        windows_of_inputs = [self._words(objective, each) for each in inputs]
        windows = [window for _, own in windows_of_inputs for window in own]
        found = iter(self._tags(objective, windows))
        outside = "O" if "O" in labels else None
        predictions = []
        for words, own in windows_of_inputs:
            for window, tags in zip(own, found, strict=False):
                for word, (label, score) in zip(window.words, tags, strict=True):
                    words[word] |= {"label": labels[label], "score": score}
            # A word that has no token of its own gets the label O.
            labelled = [{"word": each["word"], "label": each.get("label", outside)} | each for each in words]
            predictions.append(Prediction({"words": labelled}))
        return predictions

    def _tags(self, objective: TokenClassification, windows: Sequence[Any]) -> list[list[tuple[int, float]]]:
        """The label of each labelled place of each window, and its probability."""
        if not windows:
            return []
        logits = self._logits(objective, [EncodedText(window.ids) for window in windows])
        places = torch.zeros(logits.shape[:2], dtype=torch.bool)
        for row, window in enumerate(windows):
            places[row, : len(window.labels)] = torch.tensor(window.labels) >= 0
        if (tag := getattr(self.model, "tag", None)) is not None:
            labels, scores = tag(logits.to(self.model.device), places.to(self.model.device))
        else:
            best = logits.softmax(-1).max(-1)
            labels = [row[own].tolist() for row, own in zip(best.indices, places, strict=True)]
            scores = [row[own].tolist() for row, own in zip(best.values, places, strict=True)]
        return [list(zip(*pair, strict=True)) for pair in zip(labels, scores, strict=True)]

    def _words(
        self, objective: TokenClassification, fields: Mapping[str, Any]
    ) -> tuple[list[dict[str, Any]], list[Any]]:
        """The words of an input with their places in the text, and the windows of tokens that the model reads."""
        if "words" in fields:
            words = [str(word) for word in fields["words"]]
            return [{"word": word} for word in words], objective.windows(words)
        text = fields["text"]
        ids, offsets, owners = with_words(self.tokenizer, text)
        spans: dict[int, tuple[int, int]] = {}
        for (begin, end), owner in zip(offsets, owners, strict=True):
            if owner is not None and end > begin:
                first, last = spans.get(owner, (begin, end))
                spans[owner] = min(first, begin), max(last, end)
        numbers = {owner: number for number, owner in enumerate(spans)}
        placed = []
        for begin, end in spans.values():
            word = text[begin:end]
            begin += len(word) - len(word.lstrip())
            placed.append({"word": word.strip(), "start": begin, "end": begin + len(word.strip())})
        seen: set[int] = set()
        firsts: list[int | None] = []
        for owner in owners:
            new = owner in numbers and owner not in seen
            firsts.append(numbers[owner] if new and owner is not None else None)
            if owner is not None:
                seen.add(owner)
        return placed, objective.cut(ids, firsts, [0] * len(placed))

    @_predicts("question_answering", "context", "question")
    def _question_answering(self, inputs: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        limit = self._limit()
        objective = ExtractiveQA(self.tokenizer, max_length=limit, stride=min(STRIDE, limit // 3))
        predictions = []
        for each in inputs:
            windows = objective.windows(each["question"], each["context"])
            logits = self._logits(objective, [EncodedText(row.ids, row.token_types) for row in windows])
            (ranked,) = best_answers(windows, list(logits))
            best = ranked[0]
            predictions.append(Prediction({"answer": best.text, "score": best.probability}))
        return predictions

    @_predicts("multiple_choice", "question", "choices")
    def _multiple_choice(self, inputs: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        objective = MultipleChoice(self.tokenizer, max_length=self._limit())
        predictions = []
        for each in inputs:
            (example,) = objective.encode({"question": each["question"], "choices": each["choices"], "label": 0})
            batch = objective.collate([example]).to(self.model.device)
            scores = forward(self.model, batch)[0].float().cpu()[0].softmax(-1)
            best = int(scores.argmax())
            value = {"choice": each["choices"][best], "number": best, "scores": scores.tolist()}
            predictions.append(Prediction(value, example.cut))
        return predictions

    @_predicts("seq2seq", "text")
    def _seq2seq(self, inputs: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        from quatrain.generation.engine import Engine
        from quatrain.generation.params import SamplingParams

        engine = Engine(self.model, self.tokenizer, target_tokenizer=self.target_tokenizer)
        params = SamplingParams(max_new_tokens=self.max_new_tokens)
        prompts = [self.source_prefix + each["text"] for each in inputs]
        return [Prediction({"text": each.text}) for each in engine.generate(prompts, params)]

    @_predicts("embedding", "text")
    def _embedding(self, inputs: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        from quatrain.models.io.sentence_transformers import embed

        texts = [each["text"] for each in inputs]
        limit = min(self.config.max_text_length or self._limit(), self._limit())
        lengths = [len(self.tokenizer.encode(text, special_tokens=True)) for text in texts]
        vectors = embed(self.model, self.tokenizer, texts).float().cpu().tolist()
        return [
            Prediction({"vector": vector}, max(0, length - limit))
            for vector, length in zip(vectors, lengths, strict=True)
        ]

    @_predicts("masked", "text")
    def _masked(self, inputs: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        mask = self.tokenizer.mask_id
        if mask is None:
            raise InputError("The tokenizer has no mask token, so there is nothing to fill.")
        name = self.tokenizer.id_to_token(mask)
        objective = TextObjective(self.tokenizer, max_length=self._limit())
        rows = [objective.read(each["text"]) for each in inputs]
        for each, row in zip(inputs, rows, strict=True):
            if mask not in row.ids:
                raise InputError(f"{each['text'][:60]!r}: write {name} where a token is to be filled in")
        predictions = []
        for row, logits in zip(rows, self._logits(objective, rows), strict=True):
            masks = []
            for place in (place for place, token in enumerate(row.ids) if token == mask):
                best = logits[place].softmax(-1).topk(TOP)
                masks.append(
                    [
                        {"token": self.tokenizer.token_text(token), "id": token, "score": score}
                        for token, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)
                    ]
                )
            predictions.append(Prediction({"masks": masks}, row.cut))
        return predictions


def with_words(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]], list[int | None]]:
    """Ids, the span of characters of each, and the number of the word that each belongs to.

    Words are those of the tokenizer's pre-tokenizer; a tokenizer without one has the words between spaces.
    """
    ids, offsets = tokenizer.encode_with_offsets(text)
    words: list[int | None] = tokenizer.backend.encode(text, add_special_tokens=False).word_ids
    if len(text.split()) > 1 and len({word for word in words if word is not None}) < 2:
        words = [None if text[begin:end].isspace() else len(text[:end].split()) - 1 for begin, end in offsets]
    return ids, offsets, words
