"""Answers that a model writes from passages, checked sentence by sentence; and conversations.

    found = answer(index, "How are embeddings pooled?", model=Engine.load("runs/instruct"))
    [sentence.text for sentence in found.sentences if not sentence.supported]

A sentence has support where a passage has its words and all its numbers, or where a model of entailment says so, and
where every text that it puts in quotes is in the passage verbatim. Its citations are the spans that support it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from quatrain.generation.endpoint import Endpoint
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.retrieval.answer import (
    NOT_FOUND,
    THRESHOLD,
    Answer,
    AnswerSentence,
    citation,
    extract,
    turn_evidence,
)
from quatrain.retrieval.evidence import Entailment, Sentence, Weights, sentences_of
from quatrain.retrieval.index import Hit, Index
from quatrain.retrieval.prompt import passage_prompt, rewrite_prompt
from quatrain.retrieval.words import sentence_spans
from quatrain.tasks.prompting.reader import Content, reader_of

SUPPORT = 0.6
"""The share of a sentence's weight that a passage must have, or the probability of entailment."""
REPEATED = 0.9
"""A sentence that covers so much of another one supports it alone."""
NEW_TOKENS = 200
_MARK = re.compile(r"\s*\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]")
_QUOTE = re.compile(r"[\"“]([^\"“”]{12,})[\"”]")
_REFERS = frozenset(
    "it its they them their theirs he she his her him this that these those there one ones such same former latter "
    "and".split()
)
_SHORT = 1
"""Content words of a question that is read as a follow-up, without a word that refers to another question."""


@dataclass
class Conversation:
    """Questions to an index one after the other; follow-ups are rewritten to stand alone before they are searched."""

    index: Index
    model: Engine | Endpoint | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of `answer`."""
    turns: list[Answer] = field(default_factory=list)

    def ask(self, question: str) -> Answer:
        """The answer to the next question. Raises InputError."""
        history = [(each.searched, each.text) for each in self.turns]
        found = answer(self.index, question, model=self.model, history=history, **self.options)
        self.turns.append(found)
        return found


def answer(
    index: Index,
    question: str,
    *,
    model: Engine | Endpoint | None = None,
    history: Sequence[tuple[str, str]] = (),
    k: int = 5,
    search: dict[str, Any] | None = None,
    threshold: float = THRESHOLD,
    params: SamplingParams | None = None,
    entailment: Entailment | None = None,
) -> Answer:
    """The answer to a question from the `k` best passages, by a model or, without one, in quoted sentences.

    `history` are the questions and answers before it. `search` are further arguments of `Index.search`. Where the
    passages give less evidence than `threshold`, no model is asked. The `k` pictures that fit the question stand beside
    the answer. Raises InputError.
    """
    own = search or {}
    searched = standalone(index, question, history, model)
    hits = index.search(searched, k, **own, passages=True)
    found = _answered(index, question, searched, hits, model, threshold, params, entailment)
    pictures = index.pictures(searched, k, where=own.get("where")) if index.file_encoders() else ()
    return replace(found, question=question, pictures=tuple(pictures))


def _answered(
    index: Index,
    question: str,
    searched: str,
    hits: Sequence[Hit],
    model: Engine | Endpoint | None,
    threshold: float,
    params: SamplingParams | None,
    entailment: Entailment | None,
) -> Answer:
    """The answer from passages."""
    if model is None:
        return extract(index, searched, hits, threshold=threshold, original=question)
    weights = Weights(index)
    evidence = turn_evidence(weights, searched, question, hits)
    if evidence < threshold:
        note = "the passages cover too little of the question; the model was not asked"
        return Answer(question, searched, False, hits=tuple(hits), evidence=evidence, notes=(note,))
    own = params or SamplingParams(max_new_tokens=NEW_TOKENS, temperature=0.0)
    prompt = passage_prompt(model, searched, hits, own.max_new_tokens)
    (completion,) = reader_of(model).complete([prompt.content], own)
    notes = []
    if prompt.dropped:
        notes.append(f"{prompt.dropped} of {len(hits)} passages did not fit into the model's context")
    if completion.finish_reason == "length":
        notes.append(f"the answer was cut at {own.max_new_tokens} tokens")
    used = hits[: prompt.used]
    written = checked(index, completion.text, used, entailment)
    if not written:
        notes.append("the model found no answer in the passages")
    elif not any(each.supported for each in written):
        notes.append("no sentence of the answer has support in the passages")
    return Answer(
        question,
        searched,
        bool(written),
        tuple(written),
        tuple(hits),
        evidence,
        prompt.content,
        completion.text,
        tuple(notes),
    )


def checked(index: Index, text: str, hits: Sequence[Hit], entailment: Entailment | None = None) -> list[AnswerSentence]:
    """The sentences of a model's answer, each with its support; [] for an answer that says there is none."""
    plain = text.strip()
    if not plain or plain.casefold().lstrip("\"'* ").startswith(NOT_FOUND[:-1].casefold()):
        return []
    weights, sources = Weights(index), sentences_of(hits)
    return [
        _checked(index, weights, statement, numbers, hits, sources, entailment)
        for statement, numbers in statements(plain)
    ]


def statements(text: str) -> Iterator[tuple[str, list[int]]]:
    """The sentences of an answer without their marks, and the numbers that each names, before or after its stop."""
    pending: list[tuple[str, list[int]]] = []
    for start, end in sentence_spans(text):
        part = text[start:end]
        numbers = [int(each) for found in _MARK.finditer(part) for each in re.findall(r"\d+", found[1])]
        leading = re.match(r"(?:\[\d{1,3}(?:\s*,\s*\d{1,3})*\]\s*)+", part)
        if leading and pending:  # "… bark. [1] Cats …": the mark belongs to the sentence before it.
            own = [int(each) for each in re.findall(r"\d+", leading[0])]
            pending[-1][1].extend(own)
            numbers = numbers[len(own) :]
        plain = _MARK.sub("", part).strip()
        if re.search(r"\w", plain):
            pending.append((plain, numbers))
    yield from pending


def _checked(
    index: Index,
    weights: Weights,
    statement: str,
    numbers: Sequence[int],
    hits: Sequence[Hit],
    sources: Sequence[Sentence],
    entailment: Entailment | None,
) -> AnswerSentence:
    """A statement with the spans that support it: of the passages that it names, or of any if it names none."""
    named = {number - 1 for number in numbers if 1 <= number <= len(hits)}
    allowed = [each for each in sources if each.hit in named] if named else list(sources)
    quotes = [_found_quote(found[1], hits, named or range(len(hits))) for found in _QUOTE.finditer(statement)]
    if None in quotes or (numbers and not named):
        return AnswerSentence(statement, (), False, 0.0)
    spans = [citation(hits[place], start, end, index) for place, start, end in filter(None, quotes)]
    best = _best_spans(weights, statement, allowed)
    support = weights.support(statement, " ".join(each.text for each in best)) if best else 0.0
    if entailment is not None and best:
        support = entailment.probabilities([" ".join(each.text for each in best)], [statement])[0]
    if support < SUPPORT:
        return AnswerSentence(statement, (), False, support)
    spans += [citation(hits[each.hit], each.start, each.end, index) for each in best]
    return AnswerSentence(statement, tuple(dict.fromkeys(spans)), True, support)


def _best_spans(weights: Weights, statement: str, sources: Sequence[Sentence]) -> list[Sentence]:
    """The sentence that covers a statement best, and a second one of the same passage where it adds to that."""
    wanted = {word: weights.of(word) for word in weights.words(statement)}
    scored = [(weights.coverage(wanted, each.text), each) for each in sources]
    if not scored:
        return []
    score, first = max(scored, key=lambda each: each[0])
    if score >= REPEATED:
        return [first]
    more = [
        (weights.coverage(wanted, f"{first.text} {each.text}"), each)
        for _, each in scored
        if each is not first and each.hit == first.hit
    ]
    both, second = max(more, key=lambda each: each[0], default=(0.0, first))
    return sorted((first, second), key=lambda each: each.start) if both > score + 0.1 else [first]


def _found_quote(quote: str, hits: Sequence[Hit], places: Any) -> tuple[int, int, int] | None:
    """The passage, and the span in its document, that has a quoted text verbatim but for white space."""
    pattern = re.compile(r"\s+".join(map(re.escape, quote.strip(" .,;").split())))
    for place in sorted(places):
        if found := pattern.search(hits[place].text):
            return place, hits[place].start + found.start(), hits[place].start + found.end()
    return None


def standalone(
    index: Index, question: str, history: Sequence[tuple[str, str]], model: Engine | Endpoint | None = None
) -> str:
    """A question that can be searched by itself.

    A follow-up ("And how is it trained?") gets the content words of the question before it. A model may rewrite it
    instead; its words must be those of the conversation.
    """
    if not history:
        return question
    words = [word.casefold() for word in re.findall(r"\w+", question)]
    weights = Weights(index)
    asked = weights.asked(question)
    if not (set(words) & _REFERS) and len(asked) > _SHORT:
        return question
    if model is not None:
        rewritten = _rewritten(rewrite_prompt(model, question, history), model)
        known = set(weights.words(" ".join([question, *(text for pair in history[-3:] for text in pair)])))
        if rewritten and set(weights.words(rewritten)) <= known and set(asked) <= set(weights.words(rewritten)):
            return rewritten
    before = history[-1][0]
    missing = [
        word for word in re.findall(r"[\w'-]+", before)
        if weights.words(word) and set(weights.words(word)) <= weights.asked(before).keys() - asked.keys()
    ]  # fmt: skip
    return f"{question} ({' '.join(dict.fromkeys(missing))})" if missing else question


def _rewritten(content: Content, model: Engine | Endpoint) -> str:
    (completion,) = reader_of(model).complete(
        [content], SamplingParams(max_new_tokens=60, temperature=0.0, stop=("\n",))
    )
    return completion.text.strip().strip('"').removeprefix("Question:").strip()
