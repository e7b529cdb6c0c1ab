"""Streaming data (`data.streaming`): examples are read as training needs them, and shuffled within a block.

Only one block is in memory. The number of examples is unknown until the end, so a stage gives its length in steps. A
resumed run reads again up to its position. Without `data.dev` the first examples are held out for validation; the
preflight checks the next ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from quatrain.core.errors import InputError
from quatrain.data import token_file
from quatrain.data.batches import TokenExample
from quatrain.data.documents import DocumentChunk
from quatrain.data.records import Row
from quatrain.data.settings import DataSettings
from quatrain.runs.job import TrainingData
from quatrain.runs.stage import StageContext
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.streams import StreamedExamples

BLOCK = 4096
"""Examples of a block."""
FIRST = 256
"""Examples that the preflight checks."""

Make = Callable[[], Iterable[Any]]
"""Returns the examples from the first on at each call."""


def check(settings: Any, data: DataSettings) -> None:
    """Raises InputError with all settings of a stage that do not work with streaming."""
    problems = []
    if settings.train.steps is None:
        problems.append("train.epochs: the length of an epoch is unknown in a stream; give train.steps instead")
    if settings.train.packing:
        problems.append("train.packing: true; examples of a stream cannot be packed: leave it out")
    problems += settings.streaming_problems()
    if data.generates:
        problems.append("data.streaming: true; generated examples cannot be streamed: leave it out")
    if problems:
        raise InputError("data.streaming = true does not work with:", problems)


def streamed(settings: Any, context: StageContext, make: Make, *, dev: Make | None = None, held: int) -> TrainingData:
    """The stream of the examples of `make`. `dev` gives those for validation, at most `held`.

    Without `dev` the first examples are held out and not trained on. Raises InputError where no example is left.
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
    train = settings.train
    tokens = max(1, train.batch_tokens // train.accumulation)
    stream = StreamedExamples(read, batch_tokens=tokens, seed=context.seed, buffer=BLOCK)
    return TrainingData(stream, train.steps, first, held_out)


def of_records(objective: Any, records: Iterable[Row], source: str) -> Iterator[Any]:
    """The examples of each record. Raises InputError at the first invalid record, with its place."""
    for record in records:
        if record.fault is not None:
            more = f"`quatrain data check {source}` shows whether there are others"
            raise InputError(f"{record.place}: {record.fault}. {more}.")
        yield from objective.encode(record.value, record.place)


def of_texts(
    pieces: Iterable[DocumentChunk], tokenizer: Tokenizer, length: int, *, documents: bool, causal: bool
) -> Iterator[TokenExample]:
    """Texts as rows of `length` tokens; causal rows have one more, with which the next row begins.

    With `documents` no row has tokens of two documents, and causal documents begin and end with the separator.
    Otherwise documents follow each other with a separator between. The rows equal those of a token file in its order.
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
