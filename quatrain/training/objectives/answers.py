"""Extractive question answering: find the span of a context that answers a question, in contexts of any length.

SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250); questions without an answer: SQuAD 2.0 (2018, arXiv 1806.03822). A long
context is read in overlapping windows, as in Devlin et al. 2018 (arXiv 1810.04805).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.data.batches import TokenBatch
from quatrain.tokenizers.tokenizer import EncodedPair, Tokenizer
from quatrain.training.objectives.base import Loss, check_head, check_number, forward
from quatrain.training.objectives.texts import EncodedText, FieldReader, TextObjective, refuse


@dataclass(frozen=True)
class ContextWindow:
    """A question with a window of its context.

    `offsets`: the characters [start, end) of the context that each token covers; None outside the context. `span`: the
    first and last token of the answer, or (`none`, `none`) if the window does not contain the whole answer.
    """

    ids: list[int]
    token_types: list[int]
    offsets: list[tuple[int, int] | None]
    span: tuple[int, int]
    none: int
    question: str
    context: str
    answers: tuple[str, ...]
    first: bool
    exact: bool = True
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def text(self, start: int, end: int) -> str:
        """The text of the context from token `start` through token `end`, stripped of white space."""
        first, last = self.offsets[start], self.offsets[end]
        if first is None or last is None:
            raise InputError(f"Tokens {start} to {end} are not part of the context.")
        return self.context[first[0] : last[1]].strip()


@dataclass(frozen=True)
class Answer:
    """An answer ("" for no answer), the sum of its start and end logits, and its probability among the candidates."""

    text: str
    score: float
    probability: float = 1.0


class ExtractiveQA(TextObjective):
    """Questions with a context and the span that answers each of them.

    A record has `question`, `context` and `answers`: a list of {text, answer_start} as in SQuAD, or {"text": […],
    "answer_start": […]}; an empty list means that the context has no answer. The first answer is learned. A context
    that does not fit `max_length` with its question becomes windows that overlap by `stride` tokens. In a window
    without the answer, the first token (BERT's [CLS]) is the label of start and end.
    """

    head = "question_answering"

    def __init__(self, tokenizer: Tokenizer, *, max_length: int = 384, stride: int = 128):
        super().__init__(tokenizer, max_length=max_length)
        refuse(check_number("stride", stride, 0, integer=True), "ExtractiveQA")
        self.stride = stride

    def encode(self, record: Any, place: str = "this example") -> list[ContextWindow]:
        """The windows of a question. Raises InputError for missing fields, or an answer at the wrong position."""
        fields = FieldReader(record, place)
        question, context = fields.text("question"), fields.text("context")
        answers = _answers(fields, context) if not fields.problems else []
        fields.check()
        try:
            return self.windows(question, context, answers)
        except InputError as error:
            raise InputError(f"{place}: {error.message}") from error

    def windows(self, question: str, context: str, answers: Sequence[tuple[str, int]] = ()) -> list[ContextWindow]:
        """The windows of a question and its context; `answers` are texts with the characters where they start.

        Raises InputError if the question leaves room for no more than `stride` tokens of the context.
        """
        pair = self.tokenizer.encode_pair(question, context)
        places = [place for place, part in enumerate(pair.parts) if part == 1]
        if not places:
            raise InputError("context: this tokenizer gives no token for it.")
        room = (self.max_length or len(pair.ids)) - (len(pair.ids) - len(places))
        if room <= self.stride and room < len(places):
            raise InputError(
                f"question: with its special tokens it has {len(pair.ids) - len(places)} tokens, which leaves {room} "
                f"of max_length {self.max_length} for the context; must be more than stride ({self.stride})."
            )
        windows: list[ContextWindow] = []
        start = 0
        while True:
            kept = places[start : start + room]
            windows.append(self._window(pair, places, kept, question, context, answers, first=not windows))
            if start + room >= len(places):
                return windows
            start += room - self.stride

    def _window(
        self,
        pair: EncodedPair,
        places: list[int],
        kept: list[int],
        question: str,
        context: str,
        answers: Sequence[tuple[str, int]],
        *,
        first: bool,
    ) -> ContextWindow:
        chosen = [*range(places[0]), *kept, *range(places[-1] + 1, len(pair.ids))]
        # A post-processor may put the context first, or put special tokens within it.
        chosen = [place for place in chosen if pair.parts[place] != 1 or kept[0] <= place <= kept[-1]]
        ids = [pair.ids[place] for place in chosen]
        offsets = [pair.offsets[place] if pair.parts[place] == 1 else None for place in chosen]
        none = _none_place(ids, self.tokenizer)
        span, exact = (none, none), True
        if answers:
            text, begin = answers[0]
            inside = _span(offsets, begin, begin + len(text))
            if inside is not None:
                span = inside
                start, end = offsets[inside[0]], offsets[inside[1]]
                exact = start is not None and end is not None and context[start[0] : end[1]].strip() == text.strip()
        types = [pair.token_types[place] for place in chosen]
        return ContextWindow(
            ids, types, offsets, span, none, question, context, tuple(each for each, _ in answers), first, exact
        )

    def describe_target(self, example: ContextWindow) -> str:
        return f"answer: {example.answers[0]}" if example.answers else "no answer"

    def notes(self, examples: Sequence[ContextWindow]) -> list[str]:
        """Notes on the number of windows, and on answers that do not end at the end of a token."""
        questions = sum(each.first for each in examples)
        notes = []
        if len(examples) > questions:
            notes.append(
                f"{questions:,} questions became {len(examples):,} windows of at most {self.max_length} tokens that "
                f"overlap by {self.stride} tokens"
            )
        if inexact := sum(not each.exact for each in examples):
            notes.append(f"{inexact:,} answers begin or end within a token; the whole token is learned")
        return notes

    def collate(self, examples: Sequence[Any]) -> TokenBatch:
        """Windows (B, T) with labels (B, 2): the first and last token of each answer."""
        rows: list[ContextWindow] = self.encoded(examples)
        labels = torch.tensor([row.span for row in rows])
        return self.batch([EncodedText(row.ids, row.token_types) for row in rows], labels)

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """The mean of both cross-entropies summed over windows, their number, and the number of correct spans."""
        check_head(model, self.head)
        logits, loss = forward(model, batch, batch.labels)
        exact = (logits.detach().argmax(1) == batch.labels).all(-1).sum()
        return loss.sum(), len(batch.labels), {"span_accuracy": exact}

    def references(self, examples: Sequence[ContextWindow]) -> list[tuple[str, ...]]:
        """The answers of each question; an empty tuple for a question without answer."""
        return [example.answers for example in examples if example.first]

    def predictions(self, examples: Sequence[ContextWindow], outputs: Sequence[Tensor]) -> list[str]:
        """The best answer of each question; "" is possible if a question of the examples has no answer."""
        ranked = best_answers(examples, outputs, may_be_none=not all(self.references(examples)))
        return [answers[0].text for answers in ranked]

    @torch.no_grad()
    def predict(self, model: Any, batch: TokenBatch) -> list[Tensor]:
        """Start and end logits (T, 2) of each window, for `best_answers`."""
        check_head(model, self.head)
        return list(forward(model, batch)[0].float().cpu())


def best_answers(
    windows: Sequence[ContextWindow],
    logits: Sequence[Tensor],
    *,
    n_best: int = 20,
    longest: int = 30,
    may_be_none: bool = False,
    threshold: float = 0.0,
) -> list[list[Answer]]:
    """The best answers of each question, best first, from the logits (T, 2) of its consecutive windows.

    Candidates are spans of at most `longest` tokens within the context, from the `n_best` starts and ends of each
    window. With `may_be_none` the answer "" is a candidate; it comes first if its score beats the best span by more
    than `threshold`. Its score is the lowest over the windows, as in SQuAD 2.0. Raises InputError if the logits do not
    match the windows.
    """
    if len(windows) != len(logits):
        raise InputError(f"logits: {len(logits)} for {len(windows)} windows; must be one for each.")
    questions: list[list[tuple[ContextWindow, Tensor]]] = []
    for place, (window, scores) in enumerate(zip(windows, logits, strict=True), 1):
        if scores.dim() != 2 or scores.shape[0] < len(window) or scores.shape[1] != 2:
            shape = tuple(scores.shape)
            raise InputError(f"logits: window {place} has shape {shape}; must be at least ({len(window)}, 2).")
        if window.first:
            questions.append([])
        elif not questions:
            raise InputError("windows: the first one does not begin its question; give all windows of a question.")
        questions[-1].append((window, scores))
    return [_ranked(parts, n_best, longest, may_be_none, threshold) for parts in questions]


def _ranked(
    parts: Sequence[tuple[ContextWindow, Tensor]], n_best: int, longest: int, may_be_none: bool, threshold: float
) -> list[Answer]:
    scores: dict[str, float] = {}
    for window, logits in parts:
        for start, end, score in _spans(window, logits, n_best, longest):
            text = window.text(start, end)
            if text and score > scores.get(text, -math.inf):
                scores[text] = score
    ranked = sorted(scores.items(), key=lambda item: -item[1])[:n_best]
    if may_be_none or not ranked:
        nothing = min(float(logits[window.none].sum()) for window, logits in parts)
        place = 0 if not ranked or nothing > ranked[0][1] + threshold else None
        if place is None:
            place = max(1, sum(score >= nothing for _, score in ranked))
        ranked.insert(place, ("", nothing))
    probabilities = torch.tensor([score for _, score in ranked], dtype=torch.float64).softmax(0).tolist()
    return [Answer(text, score, each) for (text, score), each in zip(ranked, probabilities, strict=True)]


def _spans(window: ContextWindow, logits: Tensor, n_best: int, longest: int) -> list[tuple[int, int, float]]:
    """Start, end and score of the candidate spans of a window."""
    places = [place for place, offset in enumerate(window.offsets) if offset is not None]
    inside = logits[places]
    count = min(n_best, len(places))
    starts, ends = (inside[:, side].topk(count).indices.tolist() for side in (0, 1))
    return [
        (places[start], places[end], float(inside[start, 0] + inside[end, 1]))
        for start in starts
        for end in ends
        if start <= end < start + longest
    ]


def _none_place(ids: Sequence[int], tokenizer: Tokenizer) -> int:
    begin = tokenizer.bos_id
    return list(ids).index(begin) if begin is not None and begin in ids else 0


def _span(offsets: Sequence[tuple[int, int] | None], begin: int, end: int) -> tuple[int, int] | None:
    """The first and last token of the characters [begin, end) of the context; None if the window does not hold them."""
    context = [(place, span) for place, span in enumerate(offsets) if span is not None]
    if not context or context[0][1][0] > begin or context[-1][1][1] < end:
        return None
    touching = [place for place, span in context if span[0] < end and span[1] > begin]
    return (touching[0], touching[-1]) if touching else None


def _answers(fields: FieldReader, context: str) -> list[tuple[str, int]]:
    value = fields.record.get("answers")
    if value is None and fields.record.get("is_impossible"):
        return []
    if value is None:
        fields.raw("answers")
        return []
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            fields.fault(f"answers: {format_value(value)}; must have the lists text and answer_start, of one length")
            return []
        value = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if not isinstance(value, list | tuple):
        fields.fault(f"answers: {format_value(value)}; must be a list of {{text, answer_start}}")
        return []
    answers = []
    for number, answer in enumerate(value, 1):
        text = answer.get("text") if isinstance(answer, dict) else None
        start = answer.get("answer_start") if isinstance(answer, dict) else None
        if not isinstance(text, str) or not text.strip() or not isinstance(start, int):
            fields.fault(
                f"answers: number {number}: {format_value(answer)}; must have a text and an integer answer_start"
            )
        elif start < 0 or context[start : start + len(text)] != text:
            actual = context[max(0, start) : max(0, start) + len(text)]
            where = context.find(text)
            hint = f"; it starts at {where}" if where >= 0 else "; the context does not contain it"
            fields.fault(
                f"answers: number {number}: {format_value(text)} is not at character {start}, which has "
                f"{format_value(actual)}{hint}"
            )
        else:
            answers.append((text, start))
    return answers
