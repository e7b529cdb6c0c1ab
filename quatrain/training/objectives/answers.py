"""Extractive question answering: the span of a context that answers a question, in contexts of any length.

Rajpurkar et al. 2016 (arXiv 1606.05250) and, for questions without answer, 2018 (arXiv 1806.03822); a long context is
read in windows that overlap, as in Devlin et al. 2018 (arXiv 1810.04805).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.data.batches import TokenBatch
from quatrain.tokenizers.tokenizer import EncodedPair, Tokenizer
from quatrain.training.objectives.base import Loss, call, check_head, whole_number
from quatrain.training.objectives.texts import EncodedText, FieldReader, TextObjective, refuse, shown


@dataclass(frozen=True)
class ContextWindow:
    """A question with a stretch of its context.

    `offsets` are the characters [start, end) of the context that each token stands for, None for what is not context.
    `span` is the first and last token of the answer, twice `none` where the answer is not, or not wholly, in the
    window.
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
        """What of the context the tokens from `start` to `end`, both counted, stand for; white space around is left."""
        first, last = self.offsets[start], self.offsets[end]
        if first is None or last is None:
            raise InputError(f"Tokens {start} to {end} are not of the context.")
        return self.context[first[0] : last[1]].strip()


@dataclass(frozen=True)
class Answer:
    """An answer, "" where there is none, the sum of its logits, and its probability among the best."""

    text: str
    score: float
    probability: float = 1.0


class ExtractiveQA(TextObjective):
    """Questions with a context and the span that answers them.

    A record has `question`, `context` and `answers`: SQuAD's list of {text, answer_start}, or {"text": […],
    "answer_start": […]}; an empty one means that the context has no answer. The first answer is learned. A context that
    does not fit `max_length` with its question becomes windows that share `stride` tokens; where the answer is not in a
    window the first token (BERT's [CLS]) is learned as start and end.
    """

    head = "question_answering"

    def __init__(self, tokenizer: Tokenizer, *, max_length: int = 384, stride: int = 128):
        super().__init__(tokenizer, max_length=max_length)
        refuse(whole_number("stride", stride, 0), "ExtractiveQA")
        self.stride = stride

    def encode(self, record: Any, place: str = "this example") -> list[ContextWindow]:
        """The windows of a question. Raises InputError for missing fields, or an answer that is not where it should
        be.
        """
        fields = FieldReader(record, place)
        question, context = fields.text("question"), fields.text("context")
        answers = _answers(fields, context) if not fields.problems else []
        fields.check()
        try:
            return self.windows(question, context, answers)
        except InputError as error:
            raise InputError(f"{place}: {error.message}") from error

    def windows(self, question: str, context: str, answers: Sequence[tuple[str, int]] = ()) -> list[ContextWindow]:
        """The windows of a question on a context; `answers` are texts with the characters where they begin.

        Raises InputError where the question leaves no room for `stride` and a token more of the context.
        """
        pair = self.tokenizer.encode_pair(question, context)
        places = [place for place, part in enumerate(pair.parts) if part == 1]
        if not places:
            raise InputError("context: no token of it is left by this tokenizer.")
        room = (self.max_length or len(pair.ids)) - (len(pair.ids) - len(places))
        if room <= self.stride and room < len(places):
            raise InputError(
                f"question: with its special tokens it has {len(pair.ids) - len(places)} tokens, which leaves {room} "
                f"of max_length {self.max_length} for the context; must be more than stride ({self.stride})."
            )
        found: list[ContextWindow] = []
        start = 0
        while True:
            kept = places[start : start + room]
            found.append(self._window(pair, places, kept, question, context, answers, first=not found))
            if start + room >= len(places):
                return found
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
        # A post-processor may put the context first, or tokens between its parts.
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

    def notes(self, examples: Sequence[ContextWindow]) -> list[str]:
        """How many windows the questions became, and answers that no token ends with."""
        questions = sum(each.first for each in examples)
        notes = []
        if len(examples) > questions:
            notes.append(
                f"{questions:,} questions became {len(examples):,} windows of at most {self.max_length} tokens, "
                f"{self.stride} of them shared"
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
        """The sum over the windows of the mean of both cross-entropies, their number, and how many spans are right."""
        check_head(model, self.head)
        logits, loss = call(model, batch, batch.labels)
        right = (logits.detach().argmax(1) == batch.labels).all(-1).sum()
        return loss.sum(), len(batch.labels), {"span_accuracy": right}

    @torch.no_grad()
    def predict(self, model: Any, batch: TokenBatch) -> list[Tensor]:
        """The logits (T, 2) of start and end for each window, for `best_answers`."""
        check_head(model, self.head)
        return list(call(model, batch)[0].float().cpu())


def best_answers(
    windows: Sequence[ContextWindow],
    logits: Sequence[Tensor],
    *,
    n_best: int = 20,
    longest: int = 30,
    may_be_none: bool = False,
    threshold: float = 0.0,
) -> list[list[Answer]]:
    """The best answers of each question, best first, from the logits (T, 2) of its windows, which follow each other.

    Spans of at most `longest` tokens within the context, among the `n_best` starts and ends of each window. With
    `may_be_none` "" is among them, and first where its score beats the best span's by more than `threshold`; its
    score is the lowest of the windows', as in SQuAD 2.0. Raises InputError for logits of another number or length.
    """
    if len(windows) != len(logits):
        raise InputError(f"logits: {len(logits)} for {len(windows)} windows; must be one for each.")
    questions: list[list[tuple[ContextWindow, Tensor]]] = []
    for number, (window, found) in enumerate(zip(windows, logits, strict=True), 1):
        if found.dim() != 2 or found.shape[0] < len(window) or found.shape[1] != 2:
            shape = tuple(found.shape)
            raise InputError(f"logits: of window {number} have shape {shape}; must be ({len(window)}, 2) at least.")
        if window.first:
            questions.append([])
        elif not questions:
            raise InputError("windows: the first one does not begin its question; give all windows of a question.")
        questions[-1].append((window, found))
    return [_ranked(parts, n_best, longest, may_be_none, threshold) for parts in questions]


def _ranked(
    parts: Sequence[tuple[ContextWindow, Tensor]], n_best: int, longest: int, may_be_none: bool, threshold: float
) -> list[Answer]:
    found: dict[str, float] = {}
    for window, logits in parts:
        for start, end, score in _spans(window, logits, n_best, longest):
            text = window.text(start, end)
            if text and score > found.get(text, -math.inf):
                found[text] = score
    ranked = sorted(found.items(), key=lambda item: -item[1])[:n_best]
    if may_be_none or not ranked:
        nothing = min(float(logits[window.none].sum()) for window, logits in parts)
        place = 0 if not ranked or nothing > ranked[0][1] + threshold else None
        if place is None:
            place = max(1, sum(score >= nothing for _, score in ranked))
        ranked.insert(place, ("", nothing))
    chances = torch.tensor([score for _, score in ranked], dtype=torch.float64).softmax(0).tolist()
    return [Answer(text, score, chance) for (text, score), chance in zip(ranked, chances, strict=True)]


def _spans(window: ContextWindow, logits: Tensor, n_best: int, longest: int) -> list[tuple[int, int, float]]:
    """Start, end and score of the spans among the best starts and ends of the context's tokens."""
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
    """The first and last token of characters [begin, end) of the context; None where they are not all in the window."""
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
            fields.fault(f"answers: {shown(value)}; must have the lists text and answer_start, of one length")
            return []
        value = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if not isinstance(value, list | tuple):
        fields.fault(f"answers: {shown(value)}; must be a list of {{text, answer_start}}")
        return []
    found = []
    for number, answer in enumerate(value, 1):
        text = answer.get("text") if isinstance(answer, dict) else None
        start = answer.get("answer_start") if isinstance(answer, dict) else None
        if not isinstance(text, str) or not text.strip() or not isinstance(start, int):
            fields.fault(f"answers: number {number}: {shown(answer)}; must have a text and a whole number answer_start")
        elif start < 0 or context[start : start + len(text)] != text:
            there = context[max(0, start) : max(0, start) + len(text)]
            where = context.find(text)
            hint = f"; it begins at {where}" if where >= 0 else "; the context does not have it at all"
            fields.fault(
                f"answers: number {number}: {shown(text)} is not at character {start}, there is {shown(there)}{hint}"
            )
        else:
            found.append((text, start))
    return found
