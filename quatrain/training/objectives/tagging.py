"""Labels of words: named entities, parts of speech. A word's label stands at its first token, the rest count nothing.

Devlin et al. 2018 (arXiv 1810.04805), section 5.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE, TokenBatch, stack
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.base import Loss, call, check_head, learned_accuracy
from quatrain.training.objectives.labels import check_set, label_index, values_of, with_labels
from quatrain.training.objectives.texts import EncodedText, FieldReader, TextObjective, frame, label_names, refuse


@dataclass(frozen=True)
class TaggedWindow:
    """A stretch of a sentence: ids, labels (-100 where none counts), and for each label that counts its word's number.

    `first` is whether a sentence of `total` words begins with it; `lost` names words of which no token is left.
    """

    ids: list[int]
    labels: list[int]
    words: list[int]
    total: int
    first: bool = True
    lost: int = 0
    cut: int = 0

    def __len__(self) -> int:
        return len(self.ids)


class TokenClassification(TextObjective):
    """Sentences of words with a label each; `labels` are the model's, in its order.

    A record has `words` (or `tokens`) and `tags`, a name for each (whole numbers as for `SequenceClassification`). The
    words are read as a text, with a space between. A sentence longer than `max_length` becomes several stretches that
    share `stride` tokens; every word counts in the first that holds it, so none is lost and none counts twice.
    """

    head = "token_classification"

    def __init__(
        self,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        *,
        max_length: int | None = None,
        stride: int = 0,
        numbered: bool = False,
    ):
        super().__init__(tokenizer, max_length=max_length)
        self.numbered = numbered
        self.labels, self.stride = label_names(labels, "TokenClassification"), stride
        room = None if max_length is None else max_length - sum(map(len, frame(tokenizer)))
        if not isinstance(stride, int) or stride < 0 or (room is not None and stride >= room):
            below = "" if room is None else f" and below {room}, the tokens of a stretch"
            refuse([f"stride: {stride!r}; must be at least 0{below}"], "TokenClassification")

    def prepare(self, records: Iterable[Any]) -> tuple[list[Any], list[str]]:
        """As of every objective; the tags of all records are looked at together, and named where some are unknown."""
        kept = list(records)
        found = check_set((values_of(record, "tags") for record in kept), self.labels, self.numbered)
        return with_labels(lambda: super(TokenClassification, self).prepare(kept), found)

    def name_of(self, value: Any) -> str:
        """The model's name of a record's tag."""
        place = label_index(value, self.labels, numbered=self.numbered)
        return str(value) if isinstance(place, str) else self.labels[place]

    def encode(self, record: Any, place: str = "this example") -> list[TaggedWindow]:
        """The stretches of a sentence. Raises InputError naming what is missing, unknown or of another length."""
        fields = FieldReader(record, place)
        words, tags = fields.texts("tokens" if "tokens" in fields.record else "words"), fields.raw("tags")
        if not isinstance(tags, Sequence) or isinstance(tags, str):
            if tags is not None:
                fields.fault(f"tags: {tags!r}; must be a list, a tag for each of the tokens")
            tags = []
        elif len(tags) != len(words) and not fields.problems:
            fields.fault(f"tags: {len(tags)} for {len(words)} tokens; must be one for each")
        labels: list[int] = []
        for number, tag in enumerate(tags, 1):
            found = label_index(tag, self.labels, numbered=self.numbered)
            if isinstance(found, str):
                fields.fault(f"tags: number {number}: {found}")
            else:
                labels.append(found)
        fields.check()
        return self.stretches(words, labels)

    def stretches(self, words: Sequence[str], labels: Sequence[int] | None = None) -> list[TaggedWindow]:
        """The stretches of a sentence of words, to learn or, without labels, to be tagged."""
        ids, owners = word_tokens(self.tokenizer, words)
        return self.cut(ids, owners, [0] * len(words) if labels is None else labels)

    def cut(self, ids: Sequence[int], owners: Sequence[int | None], labels: Sequence[int]) -> list[TaggedWindow]:
        """The stretches of a text's ids; `owners` are the words that begin with them, or None, `labels` all words'."""
        before, after = frame(self.tokenizer)
        room = len(ids) if self.max_length is None else self.max_length - len(before) - len(after)
        lost, found, start, counted = len(labels) - len(set(owners) - {None}), list[TaggedWindow](), 0, set[int]()
        while start < len(ids) or not found:
            end = min(start + max(room, 1), len(ids))
            targets, numbers = list[int](), list[int]()
            for owner in owners[start:end]:
                counts = owner is not None and owner not in counted
                targets.append(labels[owner] if counts and owner is not None else IGNORE)
                if counts and owner is not None:
                    numbers.append(owner)
                    counted.add(owner)
            row = [*before, *ids[start:end], *after]
            padded = [IGNORE] * len(before) + targets + [IGNORE] * len(after)
            found.append(TaggedWindow(row, padded, numbers, len(labels), not found, 0 if found else lost))
            if end == len(ids):
                break
            start = end - self.stride
        return found

    def notes(self, examples: Sequence[TaggedWindow]) -> list[str]:
        """Sentences that became several stretches, and words of which the tokenizer leaves nothing."""
        more, lost = sum(not each.first for each in examples), sum(each.lost for each in examples)
        notes = []
        if more:
            notes.append(f"{more:,} stretches more than sentences: some are longer than {self.max_length} tokens")
        if lost:
            notes.append(f"words without a token of their own in this tokenizer, which are not learned: {lost:,}")
        return notes

    def collate(self, examples: Sequence[Any]) -> TokenBatch:
        """Sentences (B, T) with labels (B, T)."""
        rows: list[TaggedWindow] = self.encoded(examples)
        labels = stack([row.labels for row in rows], IGNORE, multiple=self.multiple, limit=self.max_length)
        return self.batch([EncodedText(row.ids) for row in rows], labels)

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """The sum over the words, their number, and how many are right."""
        check_head(model, self.head, labels=self.labels)
        logits, loss = call(model, batch, batch.labels)
        return loss.sum(), batch.num_labels, learned_accuracy(logits, batch.labels)

    @torch.no_grad()
    def predict(self, model: Any, batch: TokenBatch) -> list[list[int]]:
        """For each row the labels of its words, those that count, in order."""
        check_head(model, self.head, labels=self.labels)
        best = call(model, batch)[0].argmax(-1)
        return [row[labels != IGNORE].tolist() for row, labels in zip(best, batch.labels, strict=True)]

    def sentences(self, examples: Iterable[TaggedWindow], predictions: Iterable[Sequence[int]]) -> list[list[str]]:
        """The names of the tags of whole sentences, from what `predict` says of their stretches, in order.

        A word without a token gets "O" where that is a label, else the first label.
        """
        default = "O" if "O" in self.labels else self.labels[0]
        found: list[list[str]] = []
        for example, predicted in zip(examples, predictions, strict=True):
            if len(example.words) != len(predicted):
                raise InputError(f"predictions: {len(predicted)} for {len(example.words)} words of a stretch.")
            if example.first:
                found.append([default] * example.total)
            for word, label in zip(example.words, predicted, strict=True):
                found[-1][word] = self.labels[label]
        return found

    def truths(self, examples: Iterable[TaggedWindow]) -> list[list[str]]:
        """The names of the tags that whole sentences have, as `sentences` gives those that are predicted."""
        examples = list(examples)
        return self.sentences(examples, [[each for each in row.labels if each != IGNORE] for row in examples])


def word_tokens(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[list[int], list[int | None]]:
    """The ids of words with spaces between; for each id the number of the word of which it is the first, or None."""
    text = " ".join(words)
    ids, offsets = tokenizer.encode_with_offsets(text)
    owner_of, start = dict[int, int](), 0
    for number, word in enumerate(words):
        owner_of |= dict.fromkeys(range(start, start + len(word)), number)
        start += len(word) + 1
    owners, seen = list[int | None](), set[int]()
    for begin, end in offsets:
        # A token may begin with the space before its word.
        within = (owner_of[place] for place in range(begin, end) if place in owner_of and not text[place].isspace())
        owner = next((word for word in within if word not in seen), None)
        if owner is not None:
            seen.add(owner)
        owners.append(owner)
    return ids, owners
