"""The finetune stage: chats with loss on the assistant's tokens only, or a task of typed records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from quatrain.errors import InputError
from quatrain.models.stack import Model
from quatrain.settings import Settings
from quatrain.stages import tasks
from quatrain.stages.assess import assess, look
from quatrain.stages.base import Context, StageResult
from quatrain.stages.learning import Learning, example_stream, learn, mean_length, with_dropout
from quatrain.stages.material import corpus_of, model_of, task_of, tokenizer_of
from quatrain.stages.streaming import streamed
from quatrain.text.batches import TokenExample
from quatrain.text.chat import render
from quatrain.text.prepared import prepared
from quatrain.text.tokenizer import Tokenizer
from quatrain.training import checkpoints
from quatrain.training.objectives import Causal
from quatrain.training.settings import FinetuneStage
from quatrain.training.streams import Stream

NAMED = 3
"""Chats that are left out and named; the others are counted."""


def run(settings: FinetuneStage, context: Context) -> StageResult:
    """Prepares the examples, trains all weights or an adapter, writes `model/` (and `adapter/`) and measures it."""
    learning = setup(settings, context)
    _, result = learn(learning, context)
    if settings.objective == "chat":
        assess(settings, context, learning.model, learning.tokenizer, result)
    elif settings.evaluate:
        tasks.measure(settings, context, learning.objective, learning.model, learning.tokenizer, result)
    checkpoints.remove(context.checkpoints)
    return result


def setup(settings: FinetuneStage, context: Context, model: Model | None = None) -> Learning:
    """What the stage learns. `model` takes the place of the one that the stages before have left."""
    if settings.objective != "chat":
        return tasks.setup(settings, context, model)
    tokenizer = tokenizer_of(context)
    model = with_dropout(model or model_of(context, settings.adapter), settings.train.dropout)
    limit = settings.context or model.config.max_position_embeddings
    pad_id = tokenizer.pad_id or 0
    stream: Stream
    if context.recipe.data_of(settings).streaming:
        left = LeftOut(limit)
        found = streamed(
            settings, context, lambda: left.out_of(conversations(settings, context), tokenizer), held=0
        )
        stream, steps, examples, notes = found.stream, found.steps, found.examples, left.notes
    else:
        examples, notes = chat_examples(settings, context, tokenizer, limit)
        stream, steps = example_stream(settings, context, examples, length=limit, pad_id=pad_id)
    return Learning(
        model,
        tokenizer,
        Causal(pad_id, multiple=settings.train.pad_to_multiple_of),
        stream,
        settings.train,
        steps,
        length=mean_length(examples),
        limit=limit,
        examples=examples,
        adapter=settings.adapter,
        notes=notes,
        sample=lambda model: look(settings, context, model, tokenizer),
    )


def chat_examples(
    settings: FinetuneStage, context: Context, tokenizer: Tokenizer, limit: int
) -> tuple[Sequence[TokenExample], list[str]]:
    """The chats as examples, from the cache where they were made before."""
    data = context.recipe.data_of(settings)
    mark = corpus_of(data, format="chat").mark if data.database is None else None

    def made() -> tuple[Sequence[TokenExample], list[str]]:
        return encode_chats(conversations(settings, context), tokenizer, limit)

    if mark is None:
        return made()
    key = {"data": mark, "tokenizer": tokenizer.fingerprint, "template": tokenizer.chat_template, "limit": limit}
    examples, notes, _ = prepared({"objective": "chat", **key}, made, (TokenExample,))
    return examples, notes


def conversations(settings: Settings, context: Context) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The chats to learn, each with its place: the database's questions with their SQL, or those of the source."""
    data = context.recipe.data_of(settings)
    if data.database is not None:
        task = task_of(context, settings)
        yield from ((example.question, task.messages(example)) for example in task.train)
    else:
        for place, record in corpus_of(data, format="chat").placed():
            yield place, record.messages  # type: ignore[union-attr]


class LeftOut:
    """The chats that are no examples: too long, or nothing to learn. `notes` name the first, as they are found."""

    def __init__(self, limit: int):
        self.limit = limit
        self.long = self.empty = 0
        self.first: dict[str, list[str]] = {"long": [], "empty": []}
        self.notes: list[str] = []

    def out_of(
        self, chats: Iterable[tuple[str, list[dict[str, Any]]]], tokenizer: Tokenizer
    ) -> Iterator[TokenExample]:
        """The examples that chats are, of those that are any. What an earlier, longer reading counted stays."""
        long = empty = 0
        for place, messages in chats:
            rendered = render(tokenizer, messages)
            example = TokenExample(rendered.ids, rendered.assistant_mask)
            if len(example) - 1 > self.limit:
                long += 1
                self._name("long", place, long)
            elif example.num_labels == 0:
                empty += 1
                self._name("empty", place, empty)
            else:
                yield example
                continue
            self._note(long, empty)

    def _name(self, why: str, place: str, number: int) -> None:
        if len(self.first[why]) < number <= NAMED:
            self.first[why].append(place)

    def _note(self, long: int, empty: int) -> None:
        self.long, self.empty = max(long, self.long), max(empty, self.empty)
        self.notes.clear()
        for why, count, what in (
            ("long", self.long, f"chats longer than {self.limit} tokens left out"),
            ("empty", self.empty, "chats without an assistant's token left out"),
        ):
            if count:
                more = ", …" if count > NAMED else ""
                self.notes.append(f"{count:,} {what}: {', '.join(self.first[why])}{more}")


def encode_chats(
    chats: Iterable[tuple[str, list[dict[str, Any]]]], tokenizer: Tokenizer, limit: int
) -> tuple[list[TokenExample], list[str]]:
    """Chats, each with its place, as examples with the assistant's tokens marked. Those longer than `limit` tokens are
    left out, counted, and the first of them named.

    Raises InputError where no chat is left, or none has a token to learn.
    """
    left = LeftOut(limit)
    examples = list(left.out_of(chats, tokenizer))
    if not examples:
        raise InputError(
            f"No chat is left to learn from: {left.long} are longer than {limit} tokens, {left.empty} have no "
            "assistant token. Give a longer context, or check the data with `quatrain data check`."
        )
    notes = list(left.notes)
    learned = sum(example.num_labels for example in examples)
    total = sum(map(len, examples))
    notes.append(f"{len(examples):,} chats, {total:,} tokens, {learned / total:.0%} of them learned")
    return examples, notes
