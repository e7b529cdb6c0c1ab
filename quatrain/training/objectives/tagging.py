"""Token classification: a label for each word, such as named entities or parts of speech.

A word is labelled at its first token; its other tokens have the label -100 (Devlin et al. 2018, arXiv 1810.04805,
section 5.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.data.batches import IGNORE_INDEX, TokenBatch, stack
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives.base import Loss, correct
from quatrain.training.objectives.labels import LabelledObjective
from quatrain.training.objectives.texts import EncodedText, FieldReader, frame, refuse


@dataclass(frozen=True)
class TaggedWindow:
    """A window of a sentence: ids, labels (-100 for no label), and the word index of each labelled token.

    `first`: the window begins a sentence of `total` words. `lost`: words for which the tokenizer has no token.
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


class TokenClassification(LabelledObjective):
    """Sentences with a label for each word; `labels` are the model's label names, in its order.

    A record has `words` (or `tokens`) and `tags`, a name per word (for numbers see
    `quatrain.training.objectives.labels`). Words are joined by spaces. A sentence longer than `max_length` becomes
    several windows that overlap by `stride` tokens; a word is labelled only in the first window that contains it.
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
        super().__init__(tokenizer, labels, max_length=max_length, numbered=numbered)
        self.stride = stride
        room = None if max_length is None else max_length - sum(map(len, frame(tokenizer)))
        if not isinstance(stride, int) or stride < 0 or (room is not None and stride >= room):
            below = "" if room is None else f" and below {room}, the tokens of a window"
            refuse([f"stride: {format_value(stride)}; must be at least 0{below}"], "TokenClassification")

    @property
    def label_field(self) -> str:
        return "tags"

    def encode(self, record: Any, place: str = "this example") -> list[TaggedWindow]:
        """The windows of a sentence. Raises InputError for missing fields, unknown tags or missing tags."""
        fields = FieldReader(record, place)
        words, tags = fields.texts("tokens" if "tokens" in fields.record else "words"), fields.raw("tags")
        if not isinstance(tags, Sequence) or isinstance(tags, str):
            if tags is not None:
                fields.fault(f"tags: {format_value(tags)}; must be a list with a tag for each token")
            tags = []
        elif len(tags) != len(words) and not fields.problems:
            fields.fault(f"tags: {len(tags)} for {len(words)} tokens; must be one for each")
        labels = self.indices(fields, tags, "tags: number {}")
        fields.check()
        return self.windows(words, labels)

    def windows(self, words: Sequence[str], labels: Sequence[int] | None = None) -> list[TaggedWindow]:
        """The windows of a sentence of words; without labels, for prediction."""
        ids, owners = word_tokens(self.tokenizer, words)
        return self.cut(ids, owners, [0] * len(words) if labels is None else labels)

    def cut(self, ids: Sequence[int], owners: Sequence[int | None], labels: Sequence[int]) -> list[TaggedWindow]:
        """Cut ids into windows. `owners`: the word that each token begins, or None; `labels`: labels of all words."""
        before, after = frame(self.tokenizer)
        room = len(ids) if self.max_length is None else self.max_length - len(before) - len(after)
        lost = len(labels) - len(set(owners) - {None})
        windows, start, labelled = list[TaggedWindow](), 0, set[int]()
        while start < len(ids) or not windows:
            end = min(start + max(room, 1), len(ids))
            targets, numbers = list[int](), list[int]()
            for owner in owners[start:end]:
                if owner is None or owner in labelled:
                    targets.append(IGNORE_INDEX)
                    continue
                targets.append(labels[owner])
                numbers.append(owner)
                labelled.add(owner)
            row = [*before, *ids[start:end], *after]
            padded = [IGNORE_INDEX] * len(before) + targets + [IGNORE_INDEX] * len(after)
            windows.append(TaggedWindow(row, padded, numbers, len(labels), not windows, 0 if windows else lost))
            if end == len(ids):
                break
            start = end - self.stride
        return windows

    def describe_target(self, example: TaggedWindow) -> str:
        return "tags: " + " ".join(self.labels[label] for label in example.labels if label != IGNORE_INDEX)

    def notes(self, examples: Sequence[TaggedWindow]) -> list[str]:
        """Notes on sentences that became several windows and on words without tokens."""
        more, lost = sum(not each.first for each in examples), sum(each.lost for each in examples)
        notes = []
        if more:
            notes.append(f"{more:,} more windows than sentences: some are longer than {self.max_length} tokens")
        if lost:
            notes.append(f"words without a token of their own in this tokenizer, which are not learned: {lost:,}")
        return notes

    def collate(self, examples: Sequence[Any]) -> TokenBatch:
        """Sentences (B, T) with labels (B, T)."""
        rows: list[TaggedWindow] = self.encoded(examples)
        labels = stack([row.labels for row in rows], IGNORE_INDEX, multiple=self.multiple, limit=self.max_length)
        return self.batch([EncodedText(row.ids) for row in rows], labels)

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """The loss summed over the words, their number, and the number of correct words."""
        logits, loss = self.forward(model, batch, batch.labels)
        return loss.sum(), batch.num_labels, {} if logits is None else {"accuracy": correct(logits, batch.labels)}

    @torch.no_grad()
    def predict(self, model: Any, batch: TokenBatch) -> list[list[int]]:
        """For each row the predicted label indices at its labelled positions.

        A model that scores whole sequences of tags has a `tag` of its own.
        """
        logits = self.forward(model, batch)[0]
        if (tag := getattr(model, "tag", None)) is not None:
            found: list[list[int]] = tag(logits, batch.labels != IGNORE_INDEX)[0]
            return found
        best = logits.argmax(-1)
        return [row[labels != IGNORE_INDEX].tolist() for row, labels in zip(best, batch.labels, strict=True)]

    def predictions(self, examples: Sequence[TaggedWindow], outputs: Sequence[Sequence[int]]) -> list[list[str]]:
        """The tag names of whole sentences, from the label indices of their windows, in order.

        A word without a token gets "O" if that is a label, otherwise the first label.
        """
        default = "O" if "O" in self.labels else self.labels[0]
        sentences: list[list[str]] = []
        for example, predicted in zip(examples, outputs, strict=True):
            if len(example.words) != len(predicted):
                raise InputError(f"predictions: {len(predicted)} for {len(example.words)} words of a window.")
            if example.first:
                sentences.append([default] * example.total)
            for word, label in zip(example.words, predicted, strict=True):
                sentences[-1][word] = self.labels[label]
        return sentences

    def references(self, examples: Sequence[TaggedWindow]) -> list[list[str]]:
        """The reference tag names of whole sentences."""
        return self.predictions(examples, [[each for each in row.labels if each != IGNORE_INDEX] for row in examples])


def word_tokens(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[list[int], list[int | None]]:
    """The ids of words joined by spaces, and for each id the index of the word that it begins, or None."""
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
