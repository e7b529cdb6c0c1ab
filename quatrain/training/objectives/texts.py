"""From records to token ids: the base of text objectives, with field checks, special tokens and truncation notes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.data.batches import TokenBatch, stack, text_segments
from quatrain.data.records import Problems, Row
from quatrain.tokenizers.tokenizer import EncodedPair, Tokenizer
from quatrain.training.objectives.base import check_number


@dataclass(frozen=True)
class EncodedText:
    """One encoded text or pair: ids with special tokens, token types (pairs only) and the label.

    `cut` counts the tokens that did not fit.
    """

    ids: list[int]
    token_types: list[int] | None = None
    label: Any = None
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)


class FieldReader:
    """Reads the fields of one record, and collects problems, each with the place of the record."""

    def __init__(self, record: Any, place: str):
        self.place, self.problems = place, list[str]()
        record = plain(record)
        self.record: Mapping[str, Any] = record if isinstance(record, Mapping) else {}
        if not isinstance(record, Mapping):
            self.problems.append(f"{place}: {format_value(record)}; must be a record, such as a dictionary of fields")

    def fault(self, text: str) -> None:
        """Add a problem of this record."""
        self.problems.append(f"{self.place}: {text}")

    def raw(self, name: str) -> Any:
        """The value of a required field. A missing field adds a problem and gives None."""
        value = self.record.get(name)
        if value is None and not self.problems:
            known = ", ".join(map(str, self.record)) or "none"
            self.fault(f"{name}: missing; the fields of this record are: {known}")
        return value

    def text(self, name: str, *, empty: bool = False) -> str:
        """The text in a field. A missing field, or a value of another type, adds a problem and gives an empty text."""
        value = self.raw(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.fault(f"{name}: {format_value(value)}; must be text")
            return ""
        if not empty and not value.strip():
            self.fault(f"{name}: is empty; must contain text")
        return value

    def optional_text(self, name: str) -> str | None:
        """The text in a field, or None if the record does not have the field."""
        return None if self.record.get(name) is None else self.text(name)

    def texts(self, name: str, *, least: int = 1) -> list[str]:
        """A list of at least `least` texts, none of them empty."""
        value = self.raw(name)
        if value is None:
            return []
        are_texts = isinstance(value, Sequence) and all(isinstance(each, str) for each in value)
        if isinstance(value, str) or not are_texts:
            self.fault(f"{name}: {format_value(value)}; must be a list of texts")
            return []
        if len(value) < least:
            self.fault(f"{name}: {len(value)} of them; must be at least {least}")
        if any(not each.strip() for each in value):
            self.fault(f"{name}: number {next(i for i, each in enumerate(value, 1) if not each.strip())} is empty")
        return list(value)

    def check(self) -> None:
        """Raises InputError if there are problems."""
        if self.problems:
            raise InputError("This example cannot be used:", self.problems)


class TextObjective:
    """Base of objectives on texts: encodes records, reports all wrong records at once, and pads batches.

    `max_length` is the length limit of a row in tokens, including special tokens; None for no limit.
    """

    draws: ClassVar[bool] = False
    likelihood: ClassVar[str | None] = None
    """The metric of `loss` that is the negative log-likelihood of tokens ("loss" if there is no such metric); None for
    objectives without perplexity."""

    def __init__(self, tokenizer: Tokenizer, *, max_length: int | None = None):
        self.tokenizer, self.max_length = tokenizer, max_length
        if max_length is not None:
            refuse(check_number("max_length", max_length, 4, integer=True), type(self).__name__)
        self.pad_id = tokenizer.pad_id or 0
        self.multiple = 8

    def encode(self, record: Any, place: str = "this example") -> list[Any]:
        """Encode a record, usually as one example. Raises InputError that names the problems of the record."""
        raise NotImplementedError

    def prepare(self, records: Iterable[Any]) -> tuple[list[Any], list[str]]:
        """Encode all records. Returns the examples and notes for the user, such as how many texts were cut.

        A record is a dictionary, a typed record, or a `Row` with its place. Raises InputError that names every wrong
        record.
        """
        problems, examples, count = Problems(), list[Any](), 0
        for count, record in enumerate(records, 1):
            place, value = f"example {count}", record
            if isinstance(record, Row):
                place, value = record.place, record.value
                if record.fault is not None:
                    problems.add(f"{place}: {record.fault}")
                    continue
            try:
                examples += self.encode(value, place)
            except InputError as error:
                for problem in error.problems or [f"{place}: {error.message}"]:
                    problems.add(problem)
        if problems:
            raise problems.error("These examples cannot be used")
        if not examples:
            raise InputError("There is no example to learn from: the data has no record." if count == 0 else
                             "There is no example to learn from: no record became one.")  # fmt: skip
        return examples, self.notes(examples)

    def describe_target(self, example: Any) -> str:
        """What is learned of an example besides its tokens, for a preview; "" if there is nothing else."""
        return ""

    def references(self, examples: Sequence[Any]) -> list[Any] | None:
        """What the predictions for the examples are compared with; None if nothing is predicted."""
        return None

    def predictions(self, examples: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
        """The predictions in the format of `references`, from the output of `predict` for each example."""
        return list(outputs)

    def evaluation_metrics(self, model: Any, batch: Any) -> dict[str, float]:
        """Metrics that only evaluation computes, summed like those of `loss`."""
        return {}

    def notes(self, examples: Sequence[Any]) -> list[str]:
        """Notes for the user about these examples."""
        cut = [example for example in examples if example.cut]
        if not cut:
            return []
        lost, total = sum(example.cut for example in cut), sum(len(each) + each.cut for each in examples)
        return [
            f"{len(cut):,} of {len(examples):,} examples are longer than {self.max_length} tokens and were cut: "
            f"{lost:,} tokens, {lost / total:.1%} of all, are dropped"
        ]

    def encoded(self, examples: Sequence[Any]) -> list[Any]:
        """The examples of a batch; records are encoded first. Raises InputError for an empty batch."""
        if any(isinstance(plain(example), Mapping | Row) for example in examples):
            return self.prepare(examples)[0]
        if not len(examples):
            raise InputError("A batch needs at least one example; this one has none.")
        return list(examples)

    def batch(self, rows: Sequence[EncodedText], labels: Any) -> TokenBatch:
        """A batch of these rows (B, T), padded on the right."""
        ids = [row.ids for row in rows]
        input_ids = stack(ids, self.pad_id, multiple=self.multiple, limit=self.max_length)
        types = None
        if any(row.token_types is not None for row in rows):
            types = stack([row.token_types or [0] * len(row) for row in rows], 0, multiple=self.multiple,
                          limit=self.max_length)  # fmt: skip
        return TokenBatch.of(input_ids, labels, segments=text_segments(ids, input_ids.shape[1]), token_types=types)

    def read(self, text: str, other: str | None = None) -> EncodedText:
        """Encode a text or a pair with special tokens, cut to `max_length`; of a pair the longer text is cut first."""
        if other is None:
            ids = self.tokenizer.encode(text)
            before, after = frame(self.tokenizer)
            kept, cut = cut_to(ids, None if self.max_length is None else self.max_length - len(before) - len(after))
            return EncodedText([*before, *kept, *after], cut=cut)
        pair = self.tokenizer.encode_pair(text, other)
        short = pair if self.max_length is None else shortened(pair, self.max_length)
        return EncodedText(short.ids, short.token_types, cut=len(pair.ids) - len(short.ids))


def refuse(problems: Sequence[str], what: str) -> None:
    """Raises InputError if an objective's settings have problems."""
    if problems:
        raise InputError(f"{what} cannot be set up:", problems)


def frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text, such as [CLS] and [SEP]."""
    cached = getattr(tokenizer, "_frame", None)
    if cached is None:
        cached = _frame(tokenizer)
        tokenizer._frame = cached  # type: ignore[attr-defined]
    return cached


def _frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    if not tokenizer.backend.num_special_tokens_to_add(False):
        return [], []
    probe = tokenizer.backend.encode("a", add_special_tokens=True)
    own = [place for place, special in enumerate(probe.special_tokens_mask) if not special]
    if not own:
        return probe.ids, []
    return probe.ids[: own[0]], probe.ids[own[-1] + 1 :]


def cut_to(ids: list[int], limit: int | None) -> tuple[list[int], int]:
    """The first `limit` ids, and the number of ids that were cut."""
    if limit is None or len(ids) <= limit:
        return ids, 0
    return ids[: max(limit, 0)], len(ids) - max(limit, 0)


def shortened(pair: EncodedPair, limit: int) -> EncodedPair:
    """Truncate a pair to `limit` tokens: the longer text loses its last tokens first; special tokens stay.

    The same as the `longest_first` truncation of tokenizers. Raises InputError if the special tokens do not fit.
    """
    lengths = [pair.parts.count(0), pair.parts.count(1)]
    room = limit - (len(pair.ids) - sum(lengths))
    if room < 2:
        raise InputError(f"max_length: {limit}; two texts with their special tokens need at least {limit - room + 2}.")
    if sum(lengths) <= room:
        return pair
    short = min(lengths)
    limits = [short, room - short] if 2 * short <= room else [room // 2, room - room // 2]
    if lengths[0] > lengths[1]:
        limits.reverse()
    seen, places = [0, 0], []
    for place, part in enumerate(pair.parts):
        if part is not None:
            seen[part] += 1
        if part is None or seen[part] <= limits[part]:
            places.append(place)
    columns = {name: [column[place] for place in places] for name, column in vars(pair).items()}
    return replace(pair, **columns)


def label_names(labels: Sequence[str], what: str) -> tuple[str, ...]:
    """Check label names. Raises InputError for an empty list, duplicates, or a value that is not a list of names."""
    problems = []
    if isinstance(labels, str) or not all(isinstance(label, str) and label for label in labels):
        problems.append(f"labels: {format_value(labels)}; must be a list of names")
    elif not labels:
        problems.append("labels: none; give the names of the classes")
    elif twice := sorted({label for label in labels if list(labels).count(label) > 1}):
        problems.append(f"labels: {', '.join(twice)} more than once; names must be unique")
    refuse(problems, what)
    return tuple(labels)


def plain(record: Any) -> Any:
    """A typed record (`quatrain.data.records`) as a dictionary of its fields; anything else unchanged."""
    return record.fields() if callable(getattr(record, "fields", None)) else record
