"""The chats that a finetune stage trains on, as examples with the assistant's tokens marked.

They are the conversations of a source, the examples of a task, or the examples that a task generates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from quatrain.core.errors import InputError
from quatrain.core.settings import Settings
from quatrain.data.batches import TokenExample
from quatrain.data.corpus import Corpus
from quatrain.data.example_cache import cached_examples
from quatrain.data.records import Conversation
from quatrain.data.settings import DataSettings
from quatrain.runs.material import corpus_of, generated_task, source_task
from quatrain.runs.stage import StageContext
from quatrain.tasks.instructions import ANSWERED, LEFT, Chat, encode_chats, turns_of
from quatrain.tokenizers.chat import has_marks
from quatrain.tokenizers.templates import TEMPLATE_TOKENS, TEMPLATES
from quatrain.tokenizers.tokenizer import Tokenizer

T = TypeVar("T")


def with_template(tokenizer: Tokenizer, context: StageContext) -> Tokenizer:
    """The tokenizer with a chat template that marks the assistant's tokens, which training needs.

    Templates of public models seldom mark them. Unless the recipe names a template, the first one of ours whose special
    tokens the tokenizer has replaces it, or `plain`. Raises InputError where the recipe's own template marks nothing.
    """
    if any(map(has_marks, tokenizer.chat_templates.values())):
        return tokenizer
    if context.recipe.tokenizer.chat_template is not None:
        raise InputError(
            "tokenizer.chat_template: does not mark what the assistant says with {% generation %} … {% endgeneration "
            f"%}}, so nothing can be learned from it; mark it, or name one of {', '.join(TEMPLATES)}."
        )
    known = (name for name, tokens in TEMPLATE_TOKENS.items() if tokens and not _unknown(tokenizer, name))
    name = next(known, "plain")
    has = "does not mark the assistant's words" if tokenizer.chat_templates else "is not there"
    context.reporter.info(f'The model\'s own chat template {has}; "{name}" is taught in its place.')
    tokenizer.chat_template = TEMPLATES.get(name, name)
    return tokenizer


def _unknown(tokenizer: Tokenizer, name: str) -> list[str]:
    """The tokens of a template that the tokenizer does not know."""
    return [token for token in TEMPLATE_TOKENS.get(name, ()) if tokenizer.token_to_id(token) is None]


def chat_examples(
    settings: Settings, context: StageContext, tokenizer: Tokenizer, limit: int
) -> tuple[Sequence[TokenExample], list[str], Sequence[TokenExample]]:
    """The training chats with their notes, and those held out for validation; from the cache where it has them."""
    data = context.recipe.data_of(settings)
    both: list[list[Chat]] = []
    source_notes: list[str] = []

    def made(part: int) -> tuple[Sequence[TokenExample], list[str]]:
        if not both:
            both.extend(_both(data, context, settings, source_notes))
        if part == 1 and not both[1]:
            return [], []
        examples, notes = encode_chats(both[part], tokenizer, limit)
        return examples, [*source_notes, *notes] if part == 0 else notes

    marks = [None if data.database is not None else fingerprint_of(data, context, part) for part in ("source", "dev")]
    if None in marks:
        learned, notes = made(0)
        held_out, others = made(1)
        return learned, _warned(notes, others, context), held_out
    key = {
        "objective": "chat",
        "data": marks,
        "share": None if data.dev is not None else [data.validation, context.seed],
        "tokenizer": tokenizer.fingerprint,
        "template": tokenizer.chat_templates,
        "tokens": tokenizer.special_tokens_map,
        "limit": limit,
    }
    learned, notes, _ = cached_examples(key | {"part": "learned"}, lambda: made(0), (TokenExample,))
    held_out, others, _ = cached_examples(key | {"part": "held out"}, lambda: made(1), (TokenExample,))
    return learned, _warned(notes, others, context), held_out


def _warned(notes: list[str], validation_notes: list[str], context: StageContext) -> list[str]:
    """The notes of a stage, those on validation included; warns of chats that are left out."""
    notes = [*notes, *(f"validations: {note}" for note in validation_notes if LEFT in note)]
    for note in notes:
        if LEFT in note:
            context.reporter.warn(note)
    return notes


def fingerprint_of(data: DataSettings, context: StageContext, part: str) -> str | None:
    """Identifies the content of a part of the data for caches; "" where there is none, None where it must be read."""
    if getattr(data, part) is None:
        return ""
    task = source_task(data, part)
    return chat_corpus(data, context, part).fingerprint if task is None else task.fingerprint


def _both(
    data: DataSettings, context: StageContext, settings: Settings, notes: list[str]
) -> tuple[list[Chat], list[Chat]]:
    """The training chats, and those for validation: of `data.dev`, or a random share of the source."""
    learned = list(conversations(data, context, settings, notes))
    if data.database is not None:
        return learned, []
    if data.dev is not None:
        return learned, list(conversations(data, context, settings, [], "dev"))
    return split(learned, data.validation, context.seed)


def split(examples: Sequence[T], share: float, seed: int) -> tuple[list[T], list[T]]:
    """The training examples and a random share held out; nothing is held out where the share rounds to no example."""
    count = round(share * len(examples))
    if not 0 < count < len(examples):
        return list(examples), []
    held_out = set(np.random.default_rng(seed).permutation(len(examples))[:count].tolist())
    training = [example for number, example in enumerate(examples) if number not in held_out]
    return training, [examples[number] for number in sorted(held_out)]


def conversations(
    data: DataSettings, context: StageContext, settings: Settings, notes: list[str], part: str = "source"
) -> Iterator[Chat]:
    """The chats of a part of the data: those that a task generates, or those of the source.

    `notes` get what was left out of it.
    """
    if (generated := generated_task(context, settings)) is not None:
        for example in generated.splits["train"]:
            yield generated.question(example), generated.messages(example)
        return
    task = source_task(data, part)
    if task is None:
        for place, record in chat_corpus(data, context, part).placed():
            yield place, record.messages if isinstance(record, Conversation) else turns_of(record)
        return
    with task:
        yield from ((task.place(example), task.messages(example)) for example in task.read())
    notes += task.notes


def chat_corpus(data: DataSettings, context: StageContext, part: str) -> Corpus:
    """The records of a part of the data to read as chats: conversations, or texts with their answers.

    The corpus is opened, and its format detected, once per process.
    """
    key = f"chats:{part}:{data!r}"
    if key not in context.shared:
        context.shared[key] = corpus_of(data, part, default_format="chat", accept=ANSWERED)
    return context.shared[key]
