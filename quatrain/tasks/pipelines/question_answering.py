"""The span of a text that answers a question; or none, where the text may have no answer.

A long text is read in windows that overlap. The score of a span is the product of the probabilities of its first and
its last token among the tokens of its window, as in transformers 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field as Key
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.core.settings import Settings
from quatrain.tasks.pipelines.base import Field, Pipeline, Prediction
from quatrain.training.objectives.answers import ContextWindow, ExtractiveQA
from quatrain.training.objectives.texts import EncodedText

LONGEST = 384
"""Tokens of a window, unless the model's context is shorter."""
STRIDE = 128
"""Tokens that two windows share, unless they are short."""


class AnswerOptions(Settings):
    """Which answers are returned, and how the text is read."""

    top_k: int = Key(1, ge=1)
    """The number of answers, the likeliest first."""
    doc_stride: int | None = Key(None, ge=0)
    """Tokens that two windows of a long text share; None: 128, or half of a short window."""
    max_answer_len: int = Key(15, ge=1)
    """The most tokens of an answer."""
    max_seq_len: int | None = Key(None, ge=8)
    """The most tokens of a window with its question; None: 384, or the model's context."""
    max_question_len: int | None = Key(None, ge=1)
    """Read so many tokens of the question; None: all."""
    handle_impossible_answer: bool = False
    """Whether "no answer", an empty text, is one of the answers."""
    threshold: float = 0.0
    """How much likelier "no answer" must be than the best span, in nats."""
    align_to_words: bool = True
    """Widen an answer to whole words."""


class QuestionAnswering(Pipeline):
    """The answer to a question about a context, as {"score", "start", "end", "answer"}; several as a list."""

    task = "question-answering"
    aliases = {}
    heads = ("question_answering",)
    default_for = ("question_answering",)
    recipes = ("qa",)
    reads_ahead = 8
    fields = (Field("context", empty=False), Field("question", empty=False))
    format = "qa"
    Options = AnswerOptions

    def __call__(
        self,
        inputs: Any = None,
        *,
        question: str | Sequence[str] | None = None,
        context: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> Any:
        """The answers to inputs {"question", "context"}, or to `question` about `context`, each a text or a list."""
        if inputs is None:
            if question is None or context is None:
                raise InputError("question-answering: give a question and a context")
            inputs = _paired(question, context)
        return super().__call__(inputs, batch_size=batch_size, **options)

    def predict_batch(self, inputs: Sequence[Mapping[str, Any]], options: AnswerOptions) -> list[Prediction]:
        windows = [self._windows(each["question"], each["context"], options) for each in inputs]
        rows = [EncodedText(row.ids, row.token_types) for own in windows for row in own]
        logits = iter(self.logits(rows))
        return [
            Prediction(self._answers(each["context"], own, [next(logits) for _ in own], options))
            for each, own in zip(inputs, windows, strict=True)
        ]

    def _windows(self, question: str, context: str, options: AnswerOptions) -> list[ContextWindow]:
        length = min(options.max_seq_len or LONGEST, self.limit)
        if options.max_question_len is not None:
            _, offsets = self.tokenizer.encode_with_offsets(question)
            if len(offsets) > options.max_question_len:
                question = question[: offsets[options.max_question_len - 1][1]]
        room = length - (len(self.tokenizer.encode_pair(question, context).ids) - _context_tokens(self, context))
        stride = options.doc_stride
        if stride is None:
            stride = max(0, min(STRIDE, length // 2, room // 2))
        return ExtractiveQA(self.tokenizer, max_length=length, stride=stride).windows(question, context)

    def _answers(
        self, context: str, windows: Sequence[ContextWindow], logits: Sequence[Tensor], options: AnswerOptions
    ) -> Any:
        words = self._word_spans(context) if options.align_to_words else []
        found: dict[str, dict[str, Any]] = {}
        nothing = math.inf
        for window, own in zip(windows, logits, strict=True):
            start, end = _probabilities(window, own)
            nothing = min(nothing, float(start[window.none] * end[window.none]))
            for score, first, last in _spans(window, start, end, options):
                span = _characters(context, window, first, last, words)
                text = context[slice(*span)]
                known = found.get(text.lower())
                if known is not None:
                    known["score"] += score
                elif text:
                    found[text.lower()] = {"score": score, "start": span[0], "end": span[1], "answer": text}
        answers = sorted(found.values(), key=lambda each: -each["score"])
        if options.handle_impossible_answer or not answers:
            empty = {"score": nothing, "start": 0, "end": 0, "answer": ""}
            needed = _log(nothing) - options.threshold
            place = sum(_log(each["score"]) >= needed for each in answers)
            answers.insert(place, empty)
        answers = answers[: options.top_k]
        return answers[0] if len(answers) == 1 else answers

    def _word_spans(self, context: str) -> list[tuple[int, int]]:
        """The characters of the words of a context, by the tokenizer's own division."""
        encoding = self.tokenizer.backend.encode(context, add_special_tokens=False)
        spans: dict[int, tuple[int, int]] = {}
        for word, (begin, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
            if word is not None:
                first, last = spans.get(word, (begin, end))
                spans[word] = min(first, begin), max(last, end)
        # A tokenizer without words of its own has a single one; a span is then an answer as it is.
        return list(spans.values()) if len(spans) > 1 else []

    def record(self, value: Any) -> dict[str, Any]:
        """The best answer, and all answers where several were asked for."""
        if isinstance(value, list):
            return {**value[0], "answers": value}
        return dict(value)

    def line(self, text: str, value: Any) -> str:
        answers = value if isinstance(value, list) else [value]
        return "\n".join(f"{each['answer']}\t{each['score']:.4f}" for each in answers)


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf


def _paired(question: str | Sequence[str], context: str | Sequence[str]) -> Any:
    """Questions with their contexts; one context serves all questions. Raises InputError for different numbers."""
    if isinstance(question, str) and isinstance(context, str):
        return {"question": question, "context": context}
    questions = [question] if isinstance(question, str) else list(question)
    contexts = [context] * len(questions) if isinstance(context, str) else list(context)
    if len(questions) != len(contexts):
        raise InputError(
            f"question-answering: {len(questions)} questions for {len(contexts)} contexts; give one for each"
        )
    return [{"question": one, "context": other} for one, other in zip(questions, contexts, strict=True)]


def _context_tokens(pipeline: QuestionAnswering, context: str) -> int:
    return len(pipeline.tokenizer.encode(context))


def _probabilities(window: ContextWindow, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The probabilities (T) of being the first and the last token, among the context's tokens and that of no answer."""
    outside = torch.tensor([offset is None for offset in window.offsets])
    outside[window.none] = False
    start, end = logits.double().masked_fill(outside[:, None], -torch.inf).softmax(0).unbind(-1)
    return start, end


def _spans(window: ContextWindow, start: Tensor, end: Tensor, options: AnswerOptions) -> list[tuple[float, int, int]]:
    """Score, first and last token of the likeliest spans of a window."""
    start, end = start.clone(), end.clone()
    start[window.none] = end[window.none] = 0.0
    products = torch.outer(start, end).triu().tril(options.max_answer_len - 1)
    flat = products.flatten()
    best = flat.topk(min(options.top_k, len(flat)))
    places = [divmod(place, len(end)) for place in best.indices.tolist()]
    return [
        (score, first, last)
        for score, (first, last) in zip(best.values.tolist(), places, strict=True)
        if window.offsets[first] is not None and window.offsets[last] is not None
    ]


def _characters(
    context: str, window: ContextWindow, first: int, last: int, words: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """The characters of a span of tokens, of whole words, without white space around them."""
    begin, end = window.offsets[first], window.offsets[last]
    if begin is None or end is None:
        return 0, 0
    start, stop = begin[0], end[1]
    for word in words:
        if word[0] <= start < word[1]:
            start = word[0]
        if word[0] < stop <= word[1]:
            stop = word[1]
    while start < stop and context[start].isspace():
        start += 1
    while stop > start and context[stop - 1].isspace():
        stop -= 1
    return start, stop
