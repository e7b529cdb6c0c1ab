"""What a training run will read, looked at before it begins: its rows as a person reads them, what of them is learned,
special tokens, lengths, and what cannot work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quatrain.data.batches import IGNORE, TokenBatch, TokenExample
from quatrain.models.transformer.config import ModelConfig
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives import Causal, Objective, collate
from quatrain.training.streams import BatchStream

LOOKED_AT = 20_000
"""Examples that are counted, evenly spread, where there are more."""
SHOWN = 3
"""Rows that are decoded."""
QUANTILES = (("shortest", 0.0), ("median", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("longest", 1.0))


@dataclass(frozen=True)
class PreviewRow:
    """Ids that a model reads or says, and which of them are learned; `part` names them where there are two."""

    ids: list[int]
    learned: list[bool]
    part: str = ""


@dataclass
class DataReport:
    """What the examples of a run are. `problems` cannot work, `warnings` may be meant."""

    samples: list[list[tuple[str, bool]]] = field(default_factory=list)
    examples: int | None = None
    tokens: int = 0
    learned: int = 0
    lengths: dict[str, int] = field(default_factory=dict)
    special: dict[str, str] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def rows_of(objective: Objective, example: Any, *, says: bool = False) -> list[PreviewRow]:
    """What becomes of an example, as the objective's own batch has it; `says`: its labels are a text of their own."""
    if isinstance(example, TokenExample) and isinstance(objective, Causal):
        return [PreviewRow(list(example.ids), [False, *example.mask[1:]])]
    batch = collate(objective, [example], [(0, 0)])
    return rows_of_batch(batch, says=says)


def rows_of_batch(batch: TokenBatch, *, says: bool = False) -> list[PreviewRow]:
    """The rows of a batch without their padding, and those that an encoder-decoder `says`."""
    ids = batch.input_ids.flatten(0, -2)
    segments = None if batch.segments is None else batch.segments.flatten(0, -2)
    labels = batch.labels[0] if isinstance(batch.labels, tuple) else batch.labels
    words = labels is not None and not labels.is_floating_point() and labels.dim() == 2
    aligned = words and not says and labels.shape == ids.shape
    found = []
    for number, row in enumerate(ids.tolist()):
        length = len(row) if segments is None else int((segments[number] > 0).sum())
        learned = [label != IGNORE for label in labels[number, :length].tolist()] if aligned else [False] * length
        found.append(PreviewRow(row[:length], learned, "reads" if words and says else ""))
        if words and says:
            said = [token for token in labels[number].tolist() if token != IGNORE]
            found.append(PreviewRow(said, [True] * len(said), "says"))
    return found


def pieces(tokenizer: Tokenizer, row: PreviewRow) -> list[tuple[str, bool]]:
    """A row's text in stretches that are learned, or not, special tokens written out."""
    found: list[tuple[str, bool]] = []
    start = 0
    for end in range(1, len(row.ids) + 1):
        if end == len(row.ids) or row.learned[end] != row.learned[start]:
            found.append((tokenizer.decode(row.ids[start:end], skip_special_tokens=False), row.learned[start]))
            start = end
    return found


def _sample(tokenizer: Tokenizer, rows: Sequence[PreviewRow]) -> list[tuple[str, bool]]:
    found: list[tuple[str, bool]] = []
    for row in rows:
        found += [(f"\n{row.part}: " if found else f"{row.part}: ", False)] if row.part else []
        found += pieces(tokenizer, row)
    return found


def target_of(objective: Objective, example: Any) -> str:
    """What is learned of an example besides its tokens: its label, tags, answer or score; "" if nothing else is."""
    describe = getattr(objective, "describe_target", None)
    return describe(example) if describe is not None else ""


def look(
    objective: Objective,
    tokenizer: Tokenizer,
    config: ModelConfig,
    *,
    examples: Sequence[Any] | None = None,
    stream: BatchStream | None = None,
    chats: bool = False,
    places: Sequence[str] | None = None,
) -> DataReport:
    """Looks at the examples, or where there are none at the first rows of a stream, whose cursor moves on.

    `chats`: these are conversations, of which only a part may be learned. `places` name examples in messages.
    """
    found = DataReport(examples=None if examples is None else len(examples))
    counts = _Counts(tokenizer, config, chats)
    says = config.architecture == "encoder-decoder" and config.head == "seq2seq"
    for number, rows in _rows(objective, examples, stream, says):
        place = places[number] if places is not None and number < len(places) else f"example {number + 1:,}"
        counts.add(rows, place)
        if len(found.samples) < SHOWN:
            target = "" if examples is None else target_of(objective, examples[number])
            # in front, so that no long text hides it
            shown = [(target, True), ("\n", False)] if target else []
            found.samples.append([*shown, *_sample(tokenizer, rows[:2])])
    counts.tell(found, objective)
    if examples is not None:
        found.labels = _labels(objective, examples)
        if len(found.labels) == 1:
            only = next(iter(found.labels))
            found.problems.append(f"every example has the label {only!r}, so that there is nothing to tell apart")
    return found


def _rows(
    objective: Objective, examples: Sequence[Any] | None, stream: BatchStream | None, says: bool
) -> Iterator[tuple[int, list[PreviewRow]]]:
    if examples is not None:
        for number in range(0, len(examples), max(1, len(examples) // LOOKED_AT)):
            yield number, rows_of(objective, examples[number], says=says)
    elif stream is not None:
        for micro in range(2):
            batch = collate(objective, stream.next(), micro)
            rows = rows_of_batch(batch, says=says)
            size = 2 if says else 1
            for number in range(0, len(rows), size):
                yield number // size, rows[number : number + size]


def _labels(objective: Objective, examples: Sequence[Any]) -> dict[str, int]:
    names = getattr(objective, "labels", None)
    values = [getattr(example, "label", None) for example in examples[:LOOKED_AT]]
    if not names or any(not isinstance(value, int) for value in values):
        return {}
    return {names[value]: count for value, count in Counter(values).most_common()}


class _Counts:
    """Counts rows, and keeps what cannot work, each kind with the first examples that have it."""

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig, chats: bool):
        self.tokenizer, self.config, self.chats = tokenizer, config, chats
        self.special = tokenizer.special_ids
        self.lengths: list[int] = []
        self.tokens = self.learned = self.rows = 0
        self.read, self.said = Counter[int](), Counter[int]()
        self.wrong: dict[str, list[str]] = {}

    def add(self, rows: Sequence[PreviewRow], place: str) -> None:
        """One example."""
        self.lengths.append(sum(len(row.ids) for row in rows))
        learned = sum(sum(row.learned) for row in rows)
        self.learned += learned
        for row in rows:
            self.rows += 1
            self.tokens += len(row.ids)
            self._look_at(row, place)
        if self.chats and learned == 0:
            self._note("no token of it is learned", place)
        whole = sum(len(row.ids) for row in rows)
        if self.chats and learned >= whole - 1 and whole > 1:
            self._note("every token of it is learned, the user's too", place)

    def _look_at(self, row: PreviewRow, place: str) -> None:
        vocabulary, bos = self.config.vocab_size, self.tokenizer.bos_id
        if row.ids and max(row.ids) >= vocabulary:
            self._note(f"it has the token {max(row.ids)}, and the embedding {vocabulary} rows", place)
        if bos is not None and row.ids[:2] == [bos, bos]:
            self._note("it begins with two begin-of-text tokens", place)
        for token, learned in zip(row.ids, row.learned, strict=True):
            if token in self.special:
                self.read[token] += 1
                self.said[token] += learned

    def _note(self, problem: str, place: str) -> None:
        self.wrong.setdefault(problem, []).append(place)

    def tell(self, found: DataReport, objective: Objective) -> None:
        """What was counted, in words."""
        found.tokens, found.learned = self.tokens, self.learned
        ordered = np.sort(np.array(self.lengths or [0]))
        found.lengths = {name: int(ordered[round(share * (len(ordered) - 1))]) for name, share in QUANTILES}
        for token, count in self.read.most_common():
            name = self.tokenizer.id_to_token(token) or str(token)
            found.special[name] = f"{count:,}, {count / max(1, self.rows):.3g} a row" + (
                f", {self.said[token]:,} learned" if self.said[token] else ""
            )
        for problem, places in self.wrong.items():
            more = f" and {len(places) - 3:,} more" if len(places) > 3 else ""
            found.problems.append(f"{', '.join(places[:3])}{more}: {problem}")
        ends = self.tokenizer.stop_ids & self.special
        if self.chats and ends and not any(self.said[token] for token in ends):
            names = ", ".join(sorted(self.tokenizer.id_to_token(token) or "" for token in ends))
            found.problems.append(
                f"no example learns to end its turn ({names}): the model would never stop. Look at the chat template"
            )
        speaks = isinstance(objective, Causal) or found.learned > 0
        if speaks and not found.learned:
            found.problems.append("no token is learned, so nothing can be: look at the chat template and the roles")
