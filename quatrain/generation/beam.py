"""Beam search: the likeliest completions, found by continuing several hypotheses at every step.

Freitag and Al-Onaizan 2017 (arXiv 1702.01806); the length penalty is that of Wu et al. 2016 (arXiv 1609.08144) without
its constants. Scores, ties and the stopping rule follow transformers, so that the ids are the same: a hypothesis that
ends among the best `num_beams` continuations is ranked by its log-probability / length ** length_penalty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from quatrain.core.errors import InputError, QuatrainError
from quatrain.generation.choosing import TokenChooser
from quatrain.generation.constraints import DecodingState, padded
from quatrain.generation.filters import BROKEN, NO_TOKEN_LEFT
from quatrain.generation.requests import SequenceState
from quatrain.generation.runner import SearchBatch
from quatrain.models.transformer.stack import Model

NEVER = -1.0e9
"""The score of a hypothesis that must not win; finite, so that sums and comparisons stay finite."""


@dataclass
class _Beams:
    """The hypotheses of every row, best first: tensors (B, N) or (B, N, max new tokens)."""

    scores: Tensor
    ids: Tensor
    logprobs: Tensor
    """Of each token under the model itself."""

    @classmethod
    def empty(cls, rows: int, beams: int, length: int, device: torch.device) -> _Beams:
        """Beams without tokens."""
        shape = (rows, beams, length)
        return cls(
            torch.full(shape[:2], NEVER, device=device),
            torch.zeros(shape, dtype=torch.long, device=device),
            torch.zeros(shape, device=device),
        )

    def take(self, beams: Tensor) -> Self:
        """The beams (B, M) of each row, by their numbers."""
        wide = beams[:, :, None].expand(-1, -1, self.ids.shape[2])
        return self._each(lambda values: values.gather(1, wide if values.dim() == 3 else beams))

    def rows(self, chosen: Tensor) -> Self:
        """The hypotheses of some rows."""
        return self._each(lambda values: values[chosen])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(*(change(getattr(self, field.name)) for field in fields(self)))


@dataclass
class _Finished(_Beams):
    """The best hypotheses that have ended; an empty place has length 0 and score NEVER."""

    lengths: Tensor
    stopped: Tensor
    """Whether an end token or a stop string ended the hypothesis, not the limit."""

    @classmethod
    def none(cls, rows: int, beams: int, length: int, device: torch.device) -> _Finished:
        """A table without hypotheses."""
        begun = _Beams.empty(rows, beams, length, device)
        nothing = torch.zeros(rows, beams, dtype=torch.long, device=device)
        return cls(begun.scores, begun.ids, begun.logprobs, nothing, nothing.bool())

    def best(self, others: _Finished, count: int) -> _Finished:
        """The best `count` of these and others."""
        pairs = ((getattr(self, field.name), getattr(others, field.name)) for field in fields(self))
        joined = _Finished(*(torch.cat(pair, dim=1) for pair in pairs))
        return joined.take(joined.scores.topk(count, dim=1).indices)


class BeamSearch:
    """Searches for the best completions of a batch of sequences, each independent of the others.

    Each `step` generates one token per beam, until `rows` is empty.
    """

    def __init__(
        self,
        model: Model,
        sequences: Sequence[SequenceState],
        chooser: TokenChooser,
        stopped: Callable[[list[int]], bool] | None = None,
    ):
        """The sequences have equal parameters and end tokens. `stopped` tells whether the newest of a hypothesis' ids
        has completed a stop string.
        """
        self.rows, self.stopped = list(sequences), stopped
        self.params, end_ids = self.rows[0].params, self.rows[0].end_ids
        self.constraints = chooser.constraints(self.params, end_ids, model.device)
        self.end_ids = torch.tensor(end_ids, dtype=torch.long, device=model.device)
        self.width = self.params.num_beams
        length = max(row.limit for row in self.rows)
        self.model = SearchBatch(model, self.rows)
        device = self.model.device
        self.limits = torch.tensor([[row.limit] for row in self.rows], device=device)
        self.open = torch.ones(len(self.rows), 1, dtype=torch.bool, device=device)
        """Whether a row's beams can still beat its finished hypotheses (B, 1)."""
        self.beams = _Beams.empty(len(self.rows), self.width, length, device)
        # All beams start equal: only the first may be continued.
        self.beams.scores[:, 0] = 0.0
        self.finished = _Finished.none(len(self.rows), self.width, length, device)
        self.steps = 0

    @torch.inference_mode()
    def step(self) -> None:
        """Chooses every beam's next token and runs the model on them. Rows that are done leave: their sequences get the
        best hypothesis, and as `alternatives` the next best.

        Raises QuatrainError if the model's logits are NaN.
        """
        if self.steps == 0:
            self.model.prefill()
            self.model.select(torch.arange(len(self.rows), device=self.model.device).repeat_interleave(self.width))
        candidates, beams, ended, stopped = self._continuations()
        self.steps += 1
        # Hypotheses that have ended stay among the beams only if there are no others.
        live = candidates.scores + ended.float() * NEVER
        chosen = live.topk(self.width, dim=1).indices
        self._finish(candidates, ended, stopped)
        candidates.scores = live
        self.beams = candidates.take(chosen)
        self._close(ended)
        self._advance(beams.gather(1, chosen))

    def _continuations(self) -> tuple[_Beams, Tensor, Tensor, Tensor]:
        """The K best continuations of each row: the hypotheses (B, K), the beam each continues, whether it has ended,
        and whether an end token or stop string (not the limit) ended it.
        """
        logprobs = self.model.logits.float().log_softmax(dim=-1)
        if bool(logprobs.isnan().any()):
            raise QuatrainError(BROKEN)
        scores = self._constrained(logprobs)
        vocabulary = scores.shape[-1]
        sums = (scores.view(len(self.rows), self.width, vocabulary) + self.beams.scores[:, :, None]).flatten(1)
        # Enough to leave `width` unfinished ones even if every beam also ends with each of the end tokens.
        count = min(max(2, 1 + len(self.end_ids)) * self.width, sums.shape[1])
        best, places = sums.topk(count, dim=1)
        if bool((best[:, :1].isneginf() & self.open).any()):
            raise InputError(NO_TOKEN_LEFT)
        beams, tokens = places // vocabulary, places % vocabulary
        found = self.beams.take(beams)
        found.scores = best
        found.ids[:, :, self.steps] = tokens
        found.logprobs[:, :, self.steps] = logprobs.view(len(self.rows), -1).gather(1, places)
        stopped = torch.isin(tokens, self.end_ids)
        if self.stopped is not None:
            rows = found.ids[:, :, : self.steps + 1].tolist()
            stopped |= torch.tensor([[self.stopped(ids) for ids in row] for row in rows], device=stopped.device)
        return found, beams, stopped | (self.steps + 1 >= self.limits), stopped

    def _constrained(self, logprobs: Tensor) -> Tensor:
        if not self.constraints:
            return logprobs
        new = self.beams.ids[:, :, : self.steps].flatten(0, 1)
        limits = self.limits.repeat_interleave(self.width, dim=0)
        ids = torch.cat([self.model.decoder_ids, new], dim=1)
        new_tokens = torch.full_like(limits, self.steps)
        source = padded([row.prompt for row in self.rows], self.limits.device).repeat_interleave(self.width, dim=0)
        state = DecodingState(ids, self.model.start, limits, new_tokens, source)
        for constrain in self.constraints:
            logprobs = constrain(logprobs, state)
        return logprobs

    def _finish(self, candidates: _Beams, ended: Tensor, stopped: Tensor) -> None:
        """Adds the hypotheses among the best `width` that have ended to the finished ones."""
        place = torch.arange(ended.shape[1], device=ended.device)[None]
        enters = ended & (place < self.width)
        normalised = candidates.scores / self.steps**self.params.length_penalty
        new = _Finished(
            normalised.masked_fill(~enters, NEVER),
            candidates.ids,
            candidates.logprobs,
            enters.long() * self.steps,
            stopped,
        )
        self.finished = self.finished.best(new, self.width)

    def _close(self, ended: Tensor) -> None:
        """Closes the rows whose finished hypotheses can no longer be beaten, by the rule of `early_stopping`."""
        early, penalty = self.params.early_stopping, self.params.length_penalty
        there = self.finished.lengths > 0
        if early is True:
            self.open &= ~there.all(dim=1, keepdim=True)
        lengths = self.limits.tolist() if early == "never" and penalty > 0 else [[self.steps]] * len(self.rows)
        reach = torch.tensor([[length**penalty] for (length,) in lengths], dtype=torch.float, device=there.device)
        worst = self.finished.scores.amin(dim=1, keepdim=True).where(there, NEVER)
        self.open &= (self.beams.scores[:, :1] / reach > worst).any(dim=1, keepdim=True)
        self.open &= ~ended.all(dim=1, keepdim=True)

    def _advance(self, beams: Tensor) -> None:
        """Removes the rows that are done, reorders the cache by `beams` (B, N) and runs the newest tokens."""
        for index, still in enumerate(self.open[:, 0].tolist()):
            if not still and self.rows[index].finished is None:
                self._fill(index)
        keep = [index for index, row in enumerate(self.rows) if row.finished is None]
        if not keep:
            self.rows = []
            return
        first = torch.arange(len(self.rows), device=beams.device)[:, None] * self.width
        order = first + beams
        if len(keep) < len(self.rows):
            chosen = torch.tensor(keep, device=beams.device)
            self.rows = [self.rows[index] for index in keep]
            self.beams, self.finished = self.beams.rows(chosen), self.finished.rows(chosen)
            self.limits, self.open, order = self.limits[chosen], self.open[chosen], order[chosen]
        if len(self.rows) < len(first) or not torch.equal(order, first + torch.arange(self.width, device=order.device)):
            self.model.select(order.flatten())
        self.model.read(self.beams.ids[:, :, self.steps - 1].flatten())

    def cancel(self, rows: Sequence[int]) -> None:
        """Takes rows out of the search; their sequences get no answer."""
        for index in rows:
            self.rows[index].finished = "cancelled"
        self.open[list(rows)] = False

    def _fill(self, index: int) -> None:
        """Writes a row's best finished hypotheses into its sequence."""
        row = self.rows[index]
        found: list[SequenceState] = []
        for beam in range(self.params.num_return_sequences):
            length = int(self.finished.lengths[index, beam])
            if length:
                hypothesis = row if not found else row.sibling()
                hypothesis.ids = self.finished.ids[index, beam, :length].tolist()
                hypothesis.logprobs = self.finished.logprobs[index, beam, :length].tolist()
                hypothesis.score = float(self.finished.scores[index, beam])
                hypothesis.ended = bool(torch.isin(self.finished.ids[index, beam, length - 1], self.end_ids))
                hypothesis.finished = "stop" if bool(self.finished.stopped[index, beam]) else "length"
                found.append(hypothesis)
        row.finished = row.finished or "length"
        row.alternatives = found[1:]
