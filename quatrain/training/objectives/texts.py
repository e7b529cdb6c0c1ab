"""Plain records become ids: fields read with every fault named, special tokens around, nothing cut without a word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from quatrain.core.errors import InputError
from quatrain.data.batches import TokenBatch, stack, text_segments
from quatrain.data.records import Problems, Row
from quatrain.tokenizers.tokenizer import EncodedPair, Tokenizer
from quatrain.training.objectives.base import whole_number


@dataclass(frozen=True)
class EncodedText:
    """One text or pair as the model reads it: ids with special tokens, token types for a pair, and what is learned.

    `cut` counts the tokens that did not fit.
    """

    ids: list[int]
    token_types: list[int] | None = None
    label: Any = None
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)


class FieldReader:
    """Reads the fields of one record; what is wrong is collected in `problems`, each with the record's place."""

    def __init__(self, record: Any, place: str):
        self.place, self.problems = place, list[str]()
        record = plain(record)
        self.record: Mapping[str, Any] = record if isinstance(record, Mapping) else {}
        if not isinstance(record, Mapping):
            self.problems.append(f"{place}: {shown(record)}; must be a record, such as a dictionary of fields")

    def fault(self, text: str) -> None:
        """Notes a problem of this record."""
        self.problems.append(f"{self.place}: {text}")

    def raw(self, name: str) -> Any:
        """A field that must be there; None, noted, where it is not."""
        value = self.record.get(name)
        if value is None and not self.problems:
            known = ", ".join(map(str, self.record)) or "none"
            self.fault(f"{name}: missing; the fields of this record are: {known}")
        return value

    def text(self, name: str, *, empty: bool = False) -> str:
        """A text; "" where it is missing or no text, which is noted."""
        value = self.raw(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.fault(f"{name}: {shown(value)}; must be a text")
            return ""
        if not empty and not value.strip():
            self.fault(f"{name}: is empty; must be a text with something in it")
        return value

    def optional_text(self, name: str) -> str | None:
        """A text, or None where the record has none."""
        return None if self.record.get(name) is None else self.text(name)

    def texts(self, name: str, *, least: int = 1) -> list[str]:
        """A list of texts, none of them empty."""
        value = self.raw(name)
        if value is None:
            return []
        are_texts = isinstance(value, Sequence) and all(isinstance(each, str) for each in value)
        if isinstance(value, str) or not are_texts:
            self.fault(f"{name}: {shown(value)}; must be a list of texts")
            return []
        if len(value) < least:
            self.fault(f"{name}: {len(value)} of them; must be at least {least}")
        if any(not each.strip() for each in value):
            self.fault(f"{name}: number {next(i for i, each in enumerate(value, 1) if not each.strip())} is empty")
        return list(value)

    def check(self) -> None:
        """Raises InputError if anything was wrong."""
        if self.problems:
            raise InputError("This example cannot be used:", self.problems)


class TextObjective:
    """The part that objectives on texts share: records are encoded, checked all at once, and padded to a batch.

    `max_length` is the longest row in tokens, special tokens counted, at most the model's context; None sets no limit.
    """

    draws: ClassVar[bool] = False

    def __init__(self, tokenizer: Tokenizer, *, max_length: int | None = None):
        self.tokenizer, self.max_length = tokenizer, max_length
        if max_length is not None:
            refuse(whole_number("max_length", max_length, 4), type(self).__name__)
        self.pad_id = tokenizer.pad_id or 0
        self.multiple = 8

    def encode(self, record: Any, place: str = "this example") -> list[Any]:
        """The examples, mostly one, that a plain record becomes. Raises InputError naming what is wrong in it."""
        raise NotImplementedError

    def prepare(self, records: Iterable[Any]) -> tuple[list[Any], list[str]]:
        """All records as examples, and notes for the reader: what was cut, what is longer than the model reads.

        A record is a dictionary, a typed record, or a `Row` with its place. Raises InputError that names every wrong
        one.
        """
        problems, examples, count = Problems(), list[Any](), 0
        for number, record in enumerate(records, 1):
            count = number
            place, value = f"example {number}", record
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

    def notes(self, examples: Sequence[Any]) -> list[str]:
        """What a reader should know about these examples."""
        cut = [example for example in examples if example.cut]
        if not cut:
            return []
        lost, total = sum(example.cut for example in cut), sum(len(each) + each.cut for each in examples)
        return [
            f"{len(cut):,} of {len(examples):,} examples are longer than {self.max_length} tokens and were cut: "
            f"{lost:,} tokens, {lost / total:.1%} of all, are not read"
        ]

    def encoded(self, examples: Sequence[Any]) -> list[Any]:
        """The examples of a batch, plain records among them encoded. Raises InputError where there is none."""
        if any(isinstance(plain(example), Mapping | Row) for example in examples):
            return self.prepare(examples)[0]
        if not len(examples):
            raise InputError("A batch needs at least one example; this one has none.")
        return list(examples)

    def batch(self, rows: Sequence[EncodedText], labels: Any) -> TokenBatch:
        """Rows of one batch, padded on the right."""
        ids = [row.ids for row in rows]
        input_ids = stack(ids, self.pad_id, multiple=self.multiple, limit=self.max_length)
        types = None
        if any(row.token_types is not None for row in rows):
            types = stack([row.token_types or [0] * len(row) for row in rows], 0, multiple=self.multiple,
                          limit=self.max_length)  # fmt: skip
        return TokenBatch.of(input_ids, labels, segments=text_segments(ids, input_ids.shape[1]), token_types=types)

    def read(self, text: str, other: str | None = None) -> EncodedText:
        """A text, or two as a pair, with its special tokens, cut to `max_length`: of a pair the longer text first."""
        if other is None:
            ids = self.tokenizer.encode(text)
            before, after = frame(self.tokenizer)
            kept, cut = cut_to(ids, None if self.max_length is None else self.max_length - len(before) - len(after))
            return EncodedText([*before, *kept, *after], cut=cut)
        pair = self.tokenizer.encode_pair(text, other)
        short = pair if self.max_length is None else shortened(pair, self.max_length)
        return EncodedText(short.ids, short.token_types, cut=len(pair.ids) - len(short.ids))


def refuse(problems: Sequence[str], what: str) -> None:
    """Raises InputError for problems of an objective's settings, if there are any."""
    if problems:
        raise InputError(f"{what} cannot be set up:", problems)


def frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a text: [CLS] and [SEP], nothing and </s>, …"""
    known = getattr(tokenizer, "_frame", None)
    if known is None:
        known = _frame(tokenizer)
        tokenizer._frame = known  # type: ignore[attr-defined]
    return known


def _frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    if not tokenizer.backend.num_special_tokens_to_add(False):
        return [], []
    probe = tokenizer.backend.encode("a", add_special_tokens=True)
    own = [place for place, special in enumerate(probe.special_tokens_mask) if not special]
    if not own:
        return probe.ids, []
    return probe.ids[: own[0]], probe.ids[own[-1] + 1 :]


def cut_to(ids: list[int], limit: int | None) -> tuple[list[int], int]:
    """The first `limit` ids, and how many there are more."""
    if limit is None or len(ids) <= limit:
        return ids, 0
    return ids[: max(limit, 0)], len(ids) - max(limit, 0)


def shortened(pair: EncodedPair, limit: int) -> EncodedPair:
    """A pair of at most `limit` tokens: the longer text loses its last tokens first, special tokens stay.

    As the `longest_first` truncation of tokenizers. Raises InputError where not even the special tokens fit.
    """
    lengths = [pair.parts.count(0), pair.parts.count(1)]
    room = limit - (len(pair.ids) - sum(lengths))
    if room < 2:
        raise InputError(f"max_length: {limit}; two texts with their special tokens need at least {limit - room + 2}.")
    if sum(lengths) <= room:
        return pair
    short = min(lengths)
    kept = [short, room - short] if 2 * short <= room else [room // 2, room - room // 2]
    if lengths[0] > lengths[1]:
        kept.reverse()
    seen, places = [0, 0], []
    for place, part in enumerate(pair.parts):
        if part is not None:
            seen[part] += 1
        if part is None or seen[part] <= kept[part]:
            places.append(place)
    columns = {name: [column[place] for place in places] for name, column in vars(pair).items()}
    return replace(pair, **columns)


def label_names(labels: Sequence[str], what: str) -> tuple[str, ...]:
    """The names of labels, checked. Raises InputError for none, for a name twice, or for what is no list of names."""
    problems = []
    if isinstance(labels, str) or not all(isinstance(label, str) and label for label in labels):
        problems.append(f"labels: {shown(labels)}; must be a list of names")
    elif not labels:
        problems.append("labels: none; name what is to be told apart")
    elif twice := sorted({label for label in labels if list(labels).count(label) > 1}):
        problems.append(f"labels: {', '.join(twice)} more than once; each must have a name of its own")
    refuse(problems, what)
    return tuple(labels)


def plain(record: Any) -> Any:
    """A typed record (`quatrain.data.records`) as a dictionary of its fields; anything else as it is."""
    return record.fields() if callable(getattr(record, "fields", None)) else record


def shown(value: Any) -> str:
    """A value as a message shows it, not longer than 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
