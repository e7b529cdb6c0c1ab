"""Contrastive search: likely tokens that say something else than the text so far (Su et al. 2022, arXiv 2202.06417).

Of the k likeliest tokens v, the one with the best (1 - α) · p(v) - α · max_j cos(h_v, h_j) is taken: h_v is the hidden
state of the model's last layer after v, h_j those of the tokens so far. Each step reads all k candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from quatrain.generation.choosing import TokenChooser
from quatrain.generation.requests import SequenceState
from quatrain.generation.runner import ModelRunner, SearchBatch


class ContrastiveSearch:
    """Searches for the completions of sequences with equal parameters, each independent of the others.

    Each `step` adds one token to every sequence of `rows`, until none is left.
    """

    def __init__(self, runner: ModelRunner, sequences: Sequence[SequenceState], chooser: TokenChooser):
        self.rows, self.chooser = list(sequences), chooser
        params = self.rows[0].params
        self.alpha, self.width = params.penalty_alpha, params.rows
        self.model = SearchBatch(runner, self.rows, keep_hidden=True)
        self._similar_to: list[Tensor] = []
        """The normalized hidden states (L, hidden_size) of each sequence's tokens so far."""

    @torch.inference_mode()
    def step(self) -> None:
        """Adds a token to each sequence; finished ones leave.

        Raises the problem of a sequence whose logits are not finite or whose constraints forbid every token.
        """
        if not self._similar_to:
            self.model.prefill()
            self._similar_to = [F.normalize(states.float(), dim=-1) for states in self.model.hidden()]
        self._keep_unfinished()
        if not self.rows:
            return
        logits = self.model.logits.float()
        likeliest, problems = self.chooser.likeliest(logits, self.rows, self.width)
        for problem in problems:
            if problem is not None:
                raise problem
        count = likeliest.tokens.shape[1]
        self.model.select(torch.arange(len(self.rows), device=logits.device).repeat_interleave(count))
        self.model.read(likeliest.tokens.flatten())
        states = torch.stack([row[-1] for row in self.model.hidden()]).float()
        states = F.normalize(states, dim=-1).view(len(self.rows), count, -1)
        pairs = zip(states, self._similar_to, strict=True)
        similarity = torch.stack([(own @ before.T).amax(dim=-1) for own, before in pairs])
        scores = (1 - self.alpha) * likeliest.probabilities - self.alpha * similarity
        best = scores.masked_fill(likeliest.probabilities == 0, float("-inf")).argmax(dim=-1)
        places = torch.arange(len(self.rows), device=logits.device)
        tokens = likeliest.tokens[places, best]
        self.chooser.record(logits, likeliest.processed, tokens, self.rows).append_to(self.rows)
        self._similar_to = [
            torch.cat([before, states[row, best[row]][None]]) for row, before in enumerate(self._similar_to)
        ]
        self.model.select(places * count + best)
        self._keep_unfinished()

    def cancel(self, rows: Sequence[int]) -> None:
        """Takes rows out of the search, by their places."""
        for index in rows:
            self.rows[index].finished = "cancelled"

    def _keep_unfinished(self) -> None:
        keep = [index for index, row in enumerate(self.rows) if row.finished is None]
        if keep and len(keep) < len(self.rows):
            self.model.select(torch.tensor(keep, device=self.model.device))
        self._similar_to = [self._similar_to[index] for index in keep]
        self.rows = [self.rows[index] for index in keep]
