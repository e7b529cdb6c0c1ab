"""Classifier-free guidance for text (Sanchez et al. 2023, arXiv 2306.17806): what the prompt adds, amplified.

Each sequence has a second row, which reads the negative prompt (or the prompt's last token alone) and then the same
new tokens. The next token is chosen from u + s · (c - u), where s is the `guidance_scale`, c are the log-probabilities
after the prompt, and u those of the second row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from quatrain.generation.choosing import TokenChooser
from quatrain.generation.requests import SequenceState
from quatrain.generation.runner import ModelRunner, SearchBatch


class GuidedSearch:
    """Generates the completions of sequences with equal parameters, each independent of the others.

    Each `step` adds one token to every sequence of `rows`, until none is left.
    """

    width = 2

    def __init__(self, runner: ModelRunner, sequences: Sequence[SequenceState], chooser: TokenChooser):
        """A `negative_prompt` of the parameters is a tuple of ids here."""
        self.rows, self.chooser = list(sequences), chooser
        self.scale = self.rows[0].params.guidance_scale
        others = [row.sibling() for row in self.rows]
        for other, row in zip(others, self.rows, strict=True):
            negative = row.params.negative_prompt
            other.prompt = [int(token) for token in negative] if negative is not None else row.prompt[-1:]
            other.features = None if row.decoder_prompt is None else row.features  # Of a picture it sees nothing.
            other.ids = list(row.ids)
        self.model = SearchBatch(runner, [*self.rows, *others])
        self._is_read = False

    @torch.inference_mode()
    def step(self) -> None:
        """Adds a token to each sequence; finished ones leave.

        Raises the problem of a sequence whose logits are not finite or whose constraints forbid every token.
        """
        if not self._is_read:
            self.model.prefill()
            self._is_read = True
        self._keep_unfinished()
        if not self.rows:
            return
        logits = self.model.logits.float()
        prompted, other = logits.log_softmax(dim=-1).chunk(2)
        guided = other + self.scale * (prompted - other)
        self.chooser.choose(logits[: len(self.rows)], self.rows, adjusted=guided).append_to(self.rows)
        self._keep_unfinished()
        if self.rows:
            kept = torch.tensor([row.ids[-1] for row in self.rows], device=self.model.device)
            self.model.read(kept.repeat(2))

    def cancel(self, rows: Sequence[int]) -> None:
        """Takes rows out of the search, by their places."""
        for index in rows:
            self.rows[index].finished = "cancelled"

    def _keep_unfinished(self) -> None:
        keep = [index for index, row in enumerate(self.rows) if row.finished is None]
        if keep and len(keep) < len(self.rows):
            both = [*keep, *(index + len(self.rows) for index in keep)]
            self.model.select(torch.tensor(both, device=self.model.device))
        self.rows = [self.rows[index] for index in keep]
