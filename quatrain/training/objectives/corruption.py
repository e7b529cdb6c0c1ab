"""Bases of the objectives that corrupt a text and learn to restore it: masked tokens, masked spans, denoising."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX, TokenBatch, TokenExample, stack, text_segments
from quatrain.data.records import Row
from quatrain.training.chunked_loss import summed_language_loss
from quatrain.training.objectives.base import Loss, Seeds, check_head, generators
from quatrain.training.objectives.texts import EncodedText, FieldReader, TextObjective, frame
from quatrain.training.objectives.words import WordBoundaries


class CorruptionObjective(TextObjective):
    """Rows of token ids without special tokens, corrupted anew each time they are seen.

    An example is a record with `text` (a long text becomes several rows), a `TokenExample`, or a list of ids; a window
    stream yields a batch of rows. The corruption of a row depends on that row's seed alone.
    """

    draws = True
    likelihood = "loss"

    @cached_property
    def words(self) -> WordBoundaries:
        """Word and sentence boundaries in ids of this tokenizer."""
        return WordBoundaries(self.tokenizer)

    @property
    def row_length(self) -> int | None:
        """The longest row of plain ids whose model input fits `max_length`; None without a limit."""
        if self.max_length is None:
            return None
        return self.max_length - sum(map(len, frame(self.tokenizer)))

    def encode(self, record: Any, place: str = "this example") -> list[EncodedText]:
        """Split a text into rows. Raises InputError for a record without text."""
        fields = FieldReader(record, place)
        text = fields.text("text")
        fields.check()
        ids = self.tokenizer.encode(text)
        step = self.row_length or max(1, len(ids))
        return [EncodedText(ids[start : start + step]) for start in range(0, len(ids), step)]

    def rows(self, examples: Any) -> list[list[int]]:
        """The rows of a batch. Raises InputError for a row that is empty or longer than `row_length`."""
        if isinstance(examples, TokenBatch):
            rows = examples.input_ids.tolist()
        else:
            rows = [self._row(example) for example in self.encoded(examples)]
        limit = self.row_length
        problems = [
            f"row {number}: {len(row)} tokens; must be {'at least 1' if not row else f'at most {limit}'}"
            for number, row in enumerate(rows, 1)
            if not row or (limit is not None and len(row) > limit)
        ]
        if problems:
            reserved = (
                "" if limit is None else f", {(self.max_length or 0) - limit} of them reserved for special tokens"
            )
            raise InputError(f"These rows cannot be used; max_length is {self.max_length}{reserved}:", problems)
        return rows

    @staticmethod
    def _row(example: Any) -> list[int]:
        if isinstance(example, EncodedText | TokenExample):
            return list(example.ids)
        if isinstance(example, str | Mapping | Row):
            raise InputError(f"{type(example).__name__}: must be a record with `text`, or a list of token ids.")
        return [int(token) for token in example]

    def special(self, ids: Sequence[int], special: Collection[int] | None = None) -> np.ndarray:
        """A mask (T,) of the special tokens among the ids."""
        special = self.tokenizer.special_ids if special is None else special
        return np.fromiter((token in special for token in ids), dtype=bool, count=len(ids))

    def framed(self, ids: Sequence[int]) -> list[int]:
        """A row between the tokenizer's special tokens."""
        before, after = frame(self.tokenizer)
        return [*before, *ids, *after]

    def required_token(self, token: int | None, role: str) -> int:
        """The id of a special token. Raises InputError if the tokenizer has no such token."""
        if token is None:
            raise InputError(
                f"{type(self).__name__}: this tokenizer has no {role} token. Use the tokenizer of a model trained with "
                f"this objective, or train one that has it (kind wordpiece has [PAD] [UNK] [CLS] [SEP] [MASK])."
            )
        return token


class EncoderDecoderCorruption(CorruptionObjective):
    """The encoder reads a corrupted row; the decoder learns the missing tokens or the whole row."""

    def pair(self, row: Sequence[int], generator: np.random.Generator) -> tuple[list[int], list[int]]:
        """Source and target of a row, with their special tokens."""
        raise NotImplementedError

    def collate(self, examples: Any, *, seed: Seeds = 0) -> TokenBatch:
        """Sources (B, S), with the targets as labels (B, T)."""
        rows = self.rows(examples)
        pairs = [self.pair(row, one) for row, one in zip(rows, generators(seed, len(rows)), strict=True)]
        sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
        return source_and_target(sources, targets, self.pad_id, limit=self.max_length, multiple=self.multiple)

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """Cross-entropy in nats, summed over the target tokens; the weight is their number."""
        return target_loss(model, batch)


def source_and_target(
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    pad_id: int,
    *,
    limit: int | None = None,
    multiple: int = 8,
) -> TokenBatch:
    """Encoder inputs (B, S) and labels (B, T), padded with -100."""
    input_ids = stack(sources, pad_id, limit=limit, multiple=multiple)
    labels = stack(targets, IGNORE_INDEX, multiple=multiple)
    return TokenBatch.of(input_ids, labels, segments=text_segments(sources, input_ids.shape[1]))


def shifted_right(labels: Tensor, start: int, pad: int) -> Tensor:
    """Decoder inputs for labels (B, T): the start token, then all labels but the last; -100 becomes padding."""
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = start
    return shifted.masked_fill(shifted == IGNORE_INDEX, pad)


def decoder_states(model: Any, batch: TokenBatch) -> Tensor:
    """An encoder-decoder's last hidden states (B, T, C) for a batch of sources and labels."""
    config = check_head(model, "seq2seq")
    inputs = dict(batch.inputs)
    if "decoder_input_ids" not in inputs:
        start = config.decoder_start_token_id
        if start is None:
            raise InputError(
                "decoder_start_token_id: missing from this model's configuration; the decoder needs it as first token."
            )
        pad = start if config.pad_token_id is None else config.pad_token_id
        inputs["decoder_input_ids"] = shifted_right(batch.labels, start, pad)
    return model.hidden_states(**inputs)


def target_loss(model: Any, batch: TokenBatch) -> Loss:
    """Cross-entropy in nats, summed over the target tokens; the weight is their number."""
    return language_loss(model, decoder_states(model, batch), batch.labels)


def language_loss(model: Any, hidden: Tensor, labels: Tensor) -> Loss:
    """Cross-entropy summed over the labelled positions of hidden states (B, T, C), and the number of positions.

    Logits over the vocabulary are computed at labelled positions only.
    """
    labelled = labels != IGNORE_INDEX
    targets = labels[labelled]
    return summed_language_loss(model, hidden[labelled][None], targets[None]), targets.numel(), {}
