"""What objectives share that spoil a text and learn to mend it: rows of plain ids from texts, windows or lists."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE, TokenBatch, TokenExample, stack, text_segments
from quatrain.data.records import Row
from quatrain.training.chunked_loss import summed_language_loss
from quatrain.training.objectives.base import Loss, Seeds, check_head, generators
from quatrain.training.objectives.texts import EncodedText, FieldReader, TextObjective, frame
from quatrain.training.objectives.words import WordBoundaries


class CorruptionObjective(TextObjective):
    """Rows of ids, without special tokens around, to spoil anew each time that they are seen.

    An example is a record with `text` (a longer text becomes several rows), a `TokenExample`, or a list of ids; a
    stream of windows brings a batch of rows. What is drawn for a row follows from its seed alone.
    """

    draws = True

    @cached_property
    def words(self) -> WordBoundaries:
        """WordBoundaries and sentences of this tokenizer's ids."""
        return WordBoundaries(self.tokenizer)

    @property
    def row_length(self) -> int | None:
        """The longest row of plain ids, so that what the model reads fits `max_length`; None without limit."""
        if self.max_length is None:
            return None
        return self.max_length - sum(map(len, frame(self.tokenizer)))

    def encode(self, record: Any, place: str = "this example") -> list[EncodedText]:
        """The rows of a text, all of it. Raises InputError for a record without text."""
        fields = FieldReader(record, place)
        text = fields.text("text")
        fields.check()
        ids = self.tokenizer.encode(text)
        step = self.row_length or max(1, len(ids))
        return [EncodedText(ids[start : start + step]) for start in range(0, len(ids), step)]

    def rows(self, examples: Any) -> list[list[int]]:
        """The rows of a batch. Raises InputError for one that is empty, or longer than the model reads."""
        if isinstance(examples, TokenBatch):
            found = examples.input_ids.tolist()
        else:
            found = [self._row(example) for example in self.encoded(examples)]
        limit = self.row_length
        problems = [
            f"row {number}: {len(row)} tokens; must be {'at least 1' if not row else f'at most {limit}'}"
            for number, row in enumerate(found, 1)
            if not row or (limit is not None and len(row) > limit)
        ]
        if problems:
            around = (
                "" if limit is None else f", of which {(self.max_length or 0) - limit} go to what is put in or around"
            )
            raise InputError(f"These rows cannot be read; max_length is {self.max_length}{around}:", problems)
        return found

    @staticmethod
    def _row(example: Any) -> list[int]:
        if isinstance(example, EncodedText | TokenExample):
            return list(example.ids)
        if isinstance(example, str | Mapping | Row):
            raise InputError(f"{type(example).__name__}: must be a record with `text`, or a list of token ids.")
        return [int(token) for token in example]

    def special(self, ids: Sequence[int], special: Collection[int] | None = None) -> np.ndarray:
        """Which of the ids (T,) are special tokens."""
        special = self.tokenizer.special_ids if special is None else special
        return np.fromiter((token in special for token in ids), dtype=bool, count=len(ids))

    def framed(self, ids: Sequence[int]) -> list[int]:
        """A row with the tokenizer's special tokens around."""
        before, after = frame(self.tokenizer)
        return [*before, *ids, *after]

    def needed_token(self, token: int | None, role: str) -> int:
        """A special token's id. Raises InputError where the tokenizer has none."""
        if token is None:
            raise InputError(
                f"{type(self).__name__}: this tokenizer has no {role} token. Use the tokenizer of a model that was "
                f"trained this way, or train one with it (kind wordpiece has [PAD] [UNK] [CLS] [SEP] [MASK])."
            )
        return token


class EncoderDecoderCorruption(CorruptionObjective):
    """Of a row an encoder-decoder reads what is left of it, and says what is missing or the whole."""

    def pair(self, row: Sequence[int], generator: np.random.Generator) -> tuple[list[int], list[int]]:
        """Source and target of a row, with their special tokens."""
        raise NotImplementedError

    def collate(self, examples: Any, *, seed: Seeds = 0) -> TokenBatch:
        """Sources (B, S) and targets as labels (B, T)."""
        rows = self.rows(examples)
        pairs = [self.pair(row, one) for row, one in zip(rows, generators(seed, len(rows)), strict=True)]
        sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
        return source_and_target(sources, targets, self.pad_id, limit=self.max_length, multiple=self.multiple)

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """Cross-entropy in nats, summed over the targets' tokens; the weight is their number."""
        return target_loss(model, batch)


def source_and_target(
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    pad_id: int,
    *,
    limit: int | None = None,
    multiple: int = 8,
) -> TokenBatch:
    """Sources (B, S) for an encoder and targets as labels (B, T), -100 where they are padded."""
    input_ids = stack(sources, pad_id, limit=limit, multiple=multiple)
    labels = stack(targets, IGNORE, multiple=multiple)
    return TokenBatch.of(input_ids, labels, segments=text_segments(sources, input_ids.shape[1]))


def shifted_right(labels: Tensor, start: int, pad: int) -> Tensor:
    """What a decoder reads to say labels (B, T): the start token, then the labels but the last; padding for -100."""
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = start
    return shifted.masked_fill(shifted == IGNORE, pad)


def decoder_states(model: Any, batch: TokenBatch) -> Tensor:
    """An encoder-decoder's last states (B, T, C) for a batch of sources and labels."""
    config = check_head(model, "seq2seq")
    inputs = dict(batch.inputs)
    if "decoder_input_ids" not in inputs:
        start = config.decoder_start_token_id
        if start is None:
            raise InputError(
                "decoder_start_token_id: missing in this model's configuration; the decoder begins with it."
            )
        pad = start if config.pad_token_id is None else config.pad_token_id
        inputs["decoder_input_ids"] = shifted_right(batch.labels, start, pad)
    return model.hidden_states(**inputs)


def target_loss(model: Any, batch: TokenBatch) -> Loss:
    """Cross-entropy in nats, summed over the targets' tokens; the weight is their number."""
    return language_loss(model, decoder_states(model, batch), batch.labels)


def language_loss(model: Any, hidden: Tensor, labels: Tensor) -> Loss:
    """Cross-entropy summed over the learned tokens of hidden states (B, T, C), and their number.

    Only where something is learned are the vocabulary's logits computed.
    """
    learned = labels != IGNORE
    wanted = labels[learned]
    return summed_language_loss(model, hidden[learned][None], wanted[None]), wanted.numel(), {}
