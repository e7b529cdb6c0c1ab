"""A preview of the data of a training run: decoded rows, learned tokens, special tokens, lengths, and problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quatrain.data.batches import IGNORE_INDEX, TokenBatch, TokenExample
from quatrain.models.transformer.config import ModelConfig
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives import Causal, Objective, collate
from quatrain.training.streams import BatchStream

MOST_EXAMPLES = 20_000
"""Most examples that are counted; of more examples, an evenly spaced sample is counted."""
NUM_SAMPLES = 3
"""Number of examples that are decoded."""
QUANTILES = (("shortest", 0.0), ("median", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("longest", 1.0))


@dataclass(frozen=True)
class PreviewRow:
    """Ids that a model reads or generates, and which of them are learned; `part` is a title if there are two rows."""

    ids: list[int]
    learned: list[bool]
    part: str = ""


@dataclass
class DataReport:
    """Statistics and samples of the examples of a run. `problems` must be fixed; `warnings` may be intended."""

    samples: list[list[tuple[str, bool]]] = field(default_factory=list)
    examples: int | None = None
    tokens: int = 0
    learned: int = 0
    lengths: dict[str, int] = field(default_factory=dict)
    special: dict[str, str] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def rows_of(objective: Objective, example: Any, *, has_target: bool = False) -> list[PreviewRow]:
    """The rows of an example in the objective's batch; `has_target`: the labels are a separate text."""
    if isinstance(example, TokenExample) and isinstance(objective, Causal):
        return [PreviewRow(list(example.ids), [False, *example.mask[1:]])]
    batch = collate(objective, [example], [(0, 0)])
    return rows_of_batch(batch, has_target=has_target)


def rows_of_batch(batch: TokenBatch, *, has_target: bool = False) -> list[PreviewRow]:
    """The rows of a batch without padding and, if `has_target`, the target rows of an encoder-decoder."""
    ids = batch.input_ids.flatten(0, -2)
    segments = None if batch.segments is None else batch.segments.flatten(0, -2)
    labels = batch.labels[0] if isinstance(batch.labels, tuple) else batch.labels
    words = labels is not None and not labels.is_floating_point() and labels.dim() == 2
    aligned = words and not has_target and labels.shape == ids.shape
    rows = []
    for number, row in enumerate(ids.tolist()):
        length = len(row) if segments is None else int((segments[number] > 0).sum())
        learned = [label != IGNORE_INDEX for label in labels[number, :length].tolist()] if aligned else [False] * length
        rows.append(PreviewRow(row[:length], learned, "source" if words and has_target else ""))
        if words and has_target:
            target = [token for token in labels[number].tolist() if token != IGNORE_INDEX]
            rows.append(PreviewRow(target, [True] * len(target), "target"))
    return rows


def learned_segments(tokenizer: Tokenizer, row: PreviewRow) -> list[tuple[str, bool]]:
    """The text of a row, split where it changes between learned and not learned, with special tokens shown."""
    segments: list[tuple[str, bool]] = []
    start = 0
    for end in range(1, len(row.ids) + 1):
        if end == len(row.ids) or row.learned[end] != row.learned[start]:
            segments.append((tokenizer.decode(row.ids[start:end], skip_special_tokens=False), row.learned[start]))
            start = end
    return segments


def _sample(tokenizer: Tokenizer, rows: Sequence[PreviewRow]) -> list[tuple[str, bool]]:
    parts: list[tuple[str, bool]] = []
    for row in rows:
        parts += [(f"\n{row.part}: " if parts else f"{row.part}: ", False)] if row.part else []
        parts += learned_segments(tokenizer, row)
    return parts


def target_of(objective: Objective, example: Any) -> str:
    """What is learned of an example besides its tokens: its label, tags, answer or score; "" if nothing else is."""
    describe = getattr(objective, "describe_target", None)
    return describe(example) if describe is not None else ""


def preview_data(
    objective: Objective,
    tokenizer: Tokenizer,
    config: ModelConfig,
    *,
    examples: Sequence[Any] | None = None,
    stream: BatchStream | None = None,
    chats: bool = False,
    places: Sequence[str] | None = None,
) -> DataReport:
    """Examine the examples or, without examples, the first rows of a stream, which advances its cursor.

    `chats`: the examples are conversations, of which only the assistant's turns should be learned. `places` are names
    of the examples for messages.
    """
    report = DataReport(examples=None if examples is None else len(examples))
    counts = _Counts(tokenizer, config, chats)
    has_target = config.architecture == "encoder-decoder" and config.head == "seq2seq"
    for number, rows in _rows(objective, examples, stream, has_target):
        place = places[number] if places is not None and number < len(places) else f"example {number + 1:,}"
        counts.add(rows, place)
        if len(report.samples) < NUM_SAMPLES:
            target = "" if examples is None else target_of(objective, examples[number])
            # first, so that a long text does not hide it
            shown = [(target, True), ("\n", False)] if target else []
            report.samples.append([*shown, *_sample(tokenizer, rows[:2])])
    counts.fill(report, objective)
    if examples is not None:
        report.labels = _labels(objective, examples)
        if len(report.labels) == 1:
            only = next(iter(report.labels))
            report.problems.append(f"every example has the label {only!r}, so there is nothing to classify")
    return report


def _rows(
    objective: Objective, examples: Sequence[Any] | None, stream: BatchStream | None, has_target: bool
) -> Iterator[tuple[int, list[PreviewRow]]]:
    if examples is not None:
        for number in _sampled(examples):
            yield number, rows_of(objective, examples[number], has_target=has_target)
    elif stream is not None:
        for micro in range(2):
            batch = collate(objective, stream.next(), micro)
            rows = rows_of_batch(batch, has_target=has_target)
            size = 2 if has_target else 1
            for number in range(0, len(rows), size):
                yield number // size, rows[number : number + size]


def _sampled(examples: Sequence[Any]) -> range:
    """The numbers of about `MOST_EXAMPLES` examples, spread over all of them."""
    return range(0, len(examples), max(1, len(examples) // MOST_EXAMPLES))


def _labels(objective: Objective, examples: Sequence[Any]) -> dict[str, int]:
    """How often each label occurs, in a sample from all of the examples: files are often sorted by their label."""
    names = getattr(objective, "labels", None)
    values = [getattr(examples[number], "label", None) for number in _sampled(examples)]
    if not names or any(not isinstance(value, int) for value in values):
        return {}
    return {names[value]: count for value, count in Counter(values).most_common()}


class _Counts:
    """Counts rows and collects problems, each with the examples that have it."""

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig, chats: bool):
        self.tokenizer, self.config, self.chats = tokenizer, config, chats
        self.special = tokenizer.special_ids
        self.lengths: list[int] = []
        self.tokens = self.learned = self.rows = 0
        self.special_counts, self.special_learned = Counter[int](), Counter[int]()
        self.wrong: dict[str, list[str]] = {}

    def add(self, rows: Sequence[PreviewRow], place: str) -> None:
        """Count one example."""
        self.lengths.append(sum(len(row.ids) for row in rows))
        learned = sum(sum(row.learned) for row in rows)
        self.learned += learned
        for row in rows:
            self.rows += 1
            self.tokens += len(row.ids)
            self._check(row, place)
        if self.chats and learned == 0:
            self._note("no token is learned", place)
        whole = sum(len(row.ids) for row in rows)
        if self.chats and learned >= whole - 1 and whole > 1:
            self._note("every token is learned, including the user's", place)

    def _check(self, row: PreviewRow, place: str) -> None:
        vocabulary, bos = self.config.vocab_size, self.tokenizer.bos_id
        if row.ids and max(row.ids) >= vocabulary:
            self._note(f"it has the token id {max(row.ids)}, but the embedding has {vocabulary} rows", place)
        if bos is not None and row.ids[:2] == [bos, bos]:
            self._note("it begins with two begin-of-text tokens", place)
        for token, learned in zip(row.ids, row.learned, strict=True):
            if token in self.special:
                self.special_counts[token] += 1
                self.special_learned[token] += learned

    def _note(self, problem: str, place: str) -> None:
        self.wrong.setdefault(problem, []).append(place)

    def fill(self, report: DataReport, objective: Objective) -> None:
        """Write the counts and problems into a report."""
        report.tokens, report.learned = self.tokens, self.learned
        ordered = np.sort(np.array(self.lengths or [0]))
        report.lengths = {name: int(ordered[round(share * (len(ordered) - 1))]) for name, share in QUANTILES}
        for token, count in self.special_counts.most_common():
            name = self.tokenizer.id_to_token(token) or str(token)
            report.special[name] = f"{count:,}, {count / max(1, self.rows):.3g} per row" + (
                f", {self.special_learned[token]:,} learned" if self.special_learned[token] else ""
            )
        for problem, places in self.wrong.items():
            more = f" and {len(places) - 3:,} more" if len(places) > 3 else ""
            report.problems.append(f"{', '.join(places[:3])}{more}: {problem}")
        ends = self.tokenizer.stop_ids & self.special
        if self.chats and ends and not any(self.special_learned[token] for token in ends):
            names = ", ".join(sorted(self.tokenizer.id_to_token(token) or "" for token in ends))
            report.problems.append(
                f"no example learns to end its turn ({names}): the model would never stop. Check the chat template"
            )
        if isinstance(objective, Causal) and not report.learned:
            report.problems.append("no token is learned: check the chat template and the roles")
