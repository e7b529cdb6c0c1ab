"""Greedy decoding and sampling of a batch: one token per sequence and step.

Finished sequences leave the batch once there are enough of them to repay the copy of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quatrain.generation.cached_model import CachedModel
from quatrain.generation.choosing import TokenChooser
from quatrain.generation.requests import SequenceState
from quatrain.models.transformer.stack import Model

SHRINK_AT = 0.75
"""The batch shrinks to its unfinished rows once they are at most this share of it."""


def adapters_of(model: Model, sequences: Sequence[SequenceState]) -> list[str | None] | None:
    """The adapter of each sequence; None for a model without an adapter set."""
    return None if model.adapter_set is None else [sequence.adapter for sequence in sequences]


class Decoding:
    """Generates a batch of sequences: each `step` adds one token to every unfinished one."""

    def __init__(self, model: Model, sequences: Sequence[SequenceState], chooser: TokenChooser):
        self.chooser = chooser
        self.rows = list(sequences)
        """The sequence of each row of the batch; finished ones are included until they leave."""
        new = max(row.limit for row in self.rows)
        start = self.rows[0].decoder_start
        self.model = CachedModel(model, [row.prompt for row in self.rows], new, start, adapters_of(model, self.rows))
        self.pending: Tensor | None = None

    @property
    def active(self) -> list[SequenceState]:
        """The unfinished sequences."""
        return [row for row in self.rows if row.finished is None]

    @torch.inference_mode()
    def step(self) -> list[SequenceState]:
        """Adds one token to every unfinished sequence and returns those sequences.

        A sequence finishes with an end token, which is then its last id ("stop"), or at its limit ("length").
        Raises QuatrainError for a logit that is not finite, InputError if the constraints forbid every token.
        """
        if self.pending is None:
            self.model.prefill()
        else:
            self.model.read(self._shrink(self.pending))
        indices = [index for index, row in enumerate(self.rows) if row.finished is None]
        grown = [self.rows[index] for index in indices]
        logits = self.model.logits
        self.chooser.choose(logits if len(grown) == len(self.rows) else logits[indices], grown).append_to(grown)
        # The next token of a finished row is never used.
        self.pending = torch.tensor([row.ids[-1] for row in self.rows], device=self.model.device)
        return grown

    def _shrink(self, pending: Tensor) -> Tensor:
        """Drops finished rows if there are enough of them; returns the pending tokens (B,) of the rows that stay."""
        keep = [index for index, row in enumerate(self.rows) if row.finished is None]
        if len(keep) > SHRINK_AT * len(self.rows):
            return pending
        self.rows = [self.rows[index] for index in keep]
        chosen = torch.tensor(keep, device=self.model.device)
        self.model.select(chosen)
        return pending[chosen]
