"""Data that is read as it is needed (`data.streaming`): nothing is held but a block of examples that is shuffled.

An example is made when it is its turn, every epoch anew. How many there are is known only at the end, so that a stage
says its length in steps; a run that goes on reads again up to its place. The first examples are those of validations,
where `data.dev` names no others, and the next ones are what a preflight looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from quatrain.core.errors import InputError
from quatrain.data import token_file
from quatrain.data.batches import TokenExample
from quatrain.data.documents import DocumentChunk
from quatrain.data.records import Row
from quatrain.data.settings import DataSettings
from quatrain.runs.stage import StageContext
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.streams import StreamedExamples

BLOCK = 4096
"""Examples that are held, and shuffled, at a time."""
FIRST = 256
"""Examples that a preflight looks at."""

Make = Callable[[], Iterable[Any]]
"""Makes the examples, from the first on, each time that it is called."""


@dataclass
class Streamed:
    """A stream with its number of steps, its first examples, and those of validations."""

    stream: StreamedExamples
    steps: int
    examples: Sequence[Any]
    held_out: Sequence[Any] = field(default_factory=list)


def check(settings: Any, data: DataSettings) -> None:
    """Raises InputError with all settings of a stage that a stream cannot serve."""
    problems = []
    if settings.train.steps is None:
        problems.append("train.epochs: how long an epoch is shows only at a stream's end; give train.steps instead")
    if settings.train.packing:
        problems.append("train.packing: true; examples of a stream are not packed: leave it out")
    problems += settings.streaming_problems()
    if data.database is not None:
        problems.append("data.streaming: true; the questions of a database are no stream: leave it out")
    if problems:
        raise InputError("data.streaming = true does not go with:", problems)


def streamed(settings: Any, context: StageContext, make: Make, *, dev: Make | None = None, held: int) -> Streamed:
    """The stream of what `make` makes. `dev` makes the examples of validations, at most `held`; where it is None they
    are the first ones, and none of those is learned.

    Raises InputError where nothing is left to learn.
    """
    check(settings, context.recipe.data_of(settings))
    held_out = list(islice((dev or make)(), held)) if held else []
    skipped = 0 if dev is not None else len(held_out)

    def read(start: int) -> Iterator[Any]:
        return islice(iter(make()), skipped + start, None)

    first = list(islice(read(0), FIRST))
    if not first:
        raise InputError(
            f"There is nothing to learn after the {skipped} examples that validations take; set data.validation = 0, "
            "or name other data with data.dev."
            if skipped
            else "There is no example to learn from: the data has none."
        )
    wanted = settings.train
    tokens = max(1, wanted.batch_tokens // wanted.accumulation)
    stream = StreamedExamples(read, batch_tokens=tokens, seed=context.seed, buffer=BLOCK)
    return Streamed(stream, wanted.steps, first, held_out)


def of_records(objective: Any, records: Iterable[Row], source: str) -> Iterator[Any]:
    """Each record's examples. Raises InputError at the first that is none, with its place."""
    for record in records:
        if record.fault is not None:
            more = f"`quatrain data check {source}` shows whether there are others"
            raise InputError(f"{record.place}: {record.fault}. {more}.")
        yield from objective.encode(record.value, record.place)


def of_texts(
    pieces: Iterable[DocumentChunk], tokenizer: Tokenizer, length: int, *, documents: bool, causal: bool
) -> Iterator[TokenExample]:
    """Texts as rows of `length` tokens; causal ones have the token after them too, which the next row begins with.

    With `documents` none has tokens of two, and causal ones begin and end with the separator; otherwise one document
    goes on behind the other, a separator between. The same rows as those of a token file in its order.
    """
    separator, size = tokenizer.eos_id, length + causal
    held: list[int] = []
    ended, last, begun = True, None, False
    for ids, ends in token_file.encoded(pieces, tokenizer):
        if ids and ended:
            between = begun and last != separator
            if separator is not None and (causal if documents else between):
                held.append(separator)
            begun, ended = True, False
        held += ids
        last = ids[-1] if ids else last
        done = ends and not ended
        if done and documents and causal and separator is not None and last != separator:
            held.append(separator)
        while len(held) >= size:
            yield _learned(held[:size])
            del held[:length]
        if done and documents:
            if len(held) > causal:
                yield _learned(held)
            held = []
        ended = ended or ends
    if len(held) > causal:
        yield _learned(held)


def _learned(ids: list[int]) -> TokenExample:
    return TokenExample(ids, [True] * len(ids))
