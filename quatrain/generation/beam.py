"""Beam search: the likeliest completions, found by continuing several hypotheses at every step.

Freitag and Al-Onaizan 2017 (arXiv 1702.01806); the length penalty is that of Wu et al. 2016 (arXiv 1609.08144) without
its constants. Scores, ties and the stopping rule follow transformers, so that the ids are the same: a hypothesis that
ends among the best `num_beams` continuations is ranked by its log-probability / length ** length_penalty.

Diverse beam search (Vijayakumar et al. 2016, arXiv 1610.02424) divides the beams into groups that search side by side:
in each step, a group's tokens cost `diversity_penalty` for every beam of the groups before that has just chosen them.
`forced_words` describes the search for completions that contain given words.
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
from quatrain.generation.forced_words import ForcedWordSearch
from quatrain.generation.requests import SequenceState
from quatrain.generation.runner import ModelRunner, SearchBatch

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
        runner: ModelRunner,
        sequences: Sequence[SequenceState],
        chooser: TokenChooser,
        stopped: Callable[[list[int]], bool] | None = None,
    ):
        """The sequences have equal parameters and end tokens. `stopped` tells whether the newest of a hypothesis' ids
        has completed a stop string.
        """
        self.stopped = stopped
        self.params, end_ids = sequences[0].params, sequences[0].end_ids
        self.constraints = chooser.constraints(self.params, end_ids, runner.device)
        self.end_ids = torch.tensor(end_ids, dtype=torch.long, device=runner.device)
        self.model = SearchBatch(runner, sequences)
        device = self.model.device
        count = self.params.num_beam_groups
        self.width = self.params.num_beams
        """Rows of the model for each sequence."""
        self.beams_per_group = self.width // count
        self._sequences, self._found = list(sequences), [list[SequenceState]() for _ in sequences]
        self.rows = list(sequences)
        """The sequences that are not done."""
        self.parts = [row if count == 1 else row.sibling() for row in sequences for _ in range(count)]
        """What each group of beams finds (B); with several, the best of all of them is the sequence's answer."""
        self.groups = torch.arange(count, device=device).repeat(len(sequences))
        self.owners = torch.arange(len(sequences), device=device).repeat_interleave(count)
        """The number of each part's group, and of its sequence (B,)."""
        self.forced = ForcedWordSearch.of(chooser.forced_words(self.params), sequences, self.beams_per_group)
        length = max(row.limit for row in sequences)
        self.limits = torch.tensor([[part.limit] for part in self.parts], device=device)
        self.open = torch.ones(len(self.parts), 1, dtype=torch.bool, device=device)
        """Whether a row's beams can still beat its finished hypotheses (B, 1)."""
        self.beams = _Beams.empty(len(self.parts), self.beams_per_group, length, device)
        # All beams start equal: only the first may be continued.
        self.beams.scores[:, 0] = 0.0
        self.finished = _Finished.none(len(self.parts), self.beams_per_group, length, device)
        self.steps = 0

    @torch.inference_mode()
    def step(self) -> None:
        """Chooses every beam's next token and runs the model on them. Rows that are done leave: their sequences get the
        best hypothesis, and as `alternatives` the next best.

        Raises QuatrainError if the model's logits are NaN.
        """
        if self.steps == 0:
            self.model.prefill()
            self.model.select(self.owners.repeat_interleave(self.beams_per_group))
        candidates, beams, ended, stopped = self._continuations()
        self.steps += 1
        # Hypotheses that have ended stay among the beams only if there are no others.
        live = candidates.scores + ended.float() * NEVER
        chosen = live.topk(self.beams_per_group, dim=1).indices
        if self.forced is not None:
            chosen = self.forced.survivors(live, beams, candidates.ids[:, :, self.steps - 1])
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
        sums = (scores.view(len(self.parts), self.beams_per_group, vocabulary) + self.beams.scores[:, :, None]).flatten(
            1
        )
        # Enough to leave `width` unfinished ones even if every beam also ends with each of the end tokens.
        count = min(max(2, 1 + len(self.end_ids)) * self.beams_per_group, sums.shape[1])
        if self.params.num_beam_groups > 1:
            best, places = self._best_of_groups(sums, count)
        elif self.forced is not None:
            best, places = self.forced.best(sums, count, self.end_ids, self.limits[:, 0] - self.steps)
        else:
            best, places = sums.topk(count, dim=1)
        if bool((best[:, :1].isneginf() & self.open).any()):
            raise InputError(NO_TOKEN_LEFT)
        beams, tokens = places // vocabulary, places % vocabulary
        found = self.beams.take(beams)
        found.scores = best
        found.ids[:, :, self.steps] = tokens
        found.logprobs[:, :, self.steps] = logprobs.view(len(self.parts), -1).gather(1, places)
        stopped = torch.isin(tokens, self.end_ids)
        if self.stopped is not None:
            rows = found.ids[:, :, : self.steps + 1].tolist()
            stopped |= torch.tensor([[self.stopped(ids) for ids in row] for row in rows], device=stopped.device)
        return found, beams, stopped | (self.steps + 1 >= self.limits), stopped

    def _best_of_groups(self, sums: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The best `count` of the sums (B, beams · V), each group's after the penalties for the tokens of the groups
        before it: their values and places (B, count).
        """
        vocabulary = sums.shape[1] // self.beams_per_group
        best = sums.new_empty(len(sums), count)
        places = torch.empty(len(sums), count, dtype=torch.long, device=sums.device)
        chosen_before = sums.new_zeros(int(self.owners.max()) + 1, vocabulary)
        for group in range(self.params.num_beam_groups):
            rows = (self.groups == group).nonzero()[:, 0]
            penalties = self.params.diversity_penalty * chosen_before[self.owners[rows]]
            own = sums[rows] - penalties.repeat(1, self.beams_per_group)
            best[rows], places[rows] = own.topk(count, dim=1)
            tokens = places[rows] % vocabulary
            ended = torch.isin(tokens, self.end_ids) | (self.steps + 1 >= self.limits[rows])
            kept = (best[rows] + ended.float() * NEVER).topk(self.beams_per_group, dim=1).indices
            owners = self.owners[rows, None].expand(-1, self.beams_per_group)
            # Beams that have ended, or whose row has, are none that others could avoid.
            counts = (~ended.gather(1, kept) & self.open[rows]).to(sums.dtype)
            chosen_before.index_put_((owners, tokens.gather(1, kept)), counts, accumulate=True)
        return best, places

    def _constrained(self, logprobs: Tensor) -> Tensor:
        if not self.constraints:
            return logprobs
        new = self.beams.ids[:, :, : self.steps].flatten(0, 1)
        limits = self.limits.repeat_interleave(self.beams_per_group, dim=0)
        ids = torch.cat([self.model.decoder_ids, new], dim=1)
        new_tokens = torch.full_like(limits, self.steps)
        source = padded([part.prompt for part in self.parts], self.limits.device).repeat_interleave(
            self.beams_per_group, dim=0
        )
        state = DecodingState(ids, self.model.start, limits, new_tokens, source)
        for constrain in self.constraints:
            logprobs = constrain(logprobs, state)
        return logprobs

    def _finish(self, candidates: _Beams, ended: Tensor, stopped: Tensor) -> None:
        """Adds the hypotheses among the best `width` that have ended to the finished ones."""
        place = torch.arange(ended.shape[1], device=ended.device)[None]
        enters = ended & (place < self.beams_per_group)
        normalised = candidates.scores / self.steps**self.params.length_penalty
        new = _Finished(
            normalised.masked_fill(~enters, NEVER),
            candidates.ids,
            candidates.logprobs,
            enters.long() * self.steps,
            stopped,
        )
        self.finished = self.finished.best(new, self.beams_per_group)

    def _close(self, ended: Tensor) -> None:
        """Closes the rows whose finished hypotheses can no longer be beaten, by the rule of `early_stopping`."""
        early, penalty = self.params.early_stopping, self.params.length_penalty
        there = self.finished.lengths > 0
        if early is True:
            self.open &= ~there.all(dim=1, keepdim=True)
        lengths = self.limits.tolist() if early == "never" and penalty > 0 else [[self.steps]] * len(self.parts)
        reach = torch.tensor([[length**penalty] for (length,) in lengths], dtype=torch.float, device=there.device)
        worst = self.finished.scores.amin(dim=1, keepdim=True).where(there, NEVER)
        self.open &= (self.beams.scores[:, :1] / reach > worst).any(dim=1, keepdim=True)
        self.open &= ~ended.all(dim=1, keepdim=True)

    def _advance(self, beams: Tensor) -> None:
        """Removes the rows that are done, reorders the cache by `beams` (B, N) and runs the newest tokens."""
        for index, still in enumerate(self.open[:, 0].tolist()):
            if not still and self.parts[index].finished is None:
                self._fill(index)
        if self.params.num_beam_groups > 1:
            self._answer([index for index, part in enumerate(self.parts) if part.finished is not None])
        self.rows = [row for row in self.rows if row.finished is None]
        keep = [index for index, part in enumerate(self.parts) if part.finished is None]
        if not keep:
            return
        first = torch.arange(len(self.parts), device=beams.device)[:, None] * self.beams_per_group
        order = first + beams
        if len(keep) < len(self.parts):
            chosen = torch.tensor(keep, device=beams.device)
            self.parts = [self.parts[index] for index in keep]
            if self.forced is not None:
                self.forced.keep(keep)
            self.groups, self.owners = self.groups[chosen], self.owners[chosen]
            self.beams, self.finished = self.beams.rows(chosen), self.finished.rows(chosen)
            self.limits, self.open, order = self.limits[chosen], self.open[chosen], order[chosen]
        in_place = first + torch.arange(self.beams_per_group, device=order.device)
        if len(self.parts) < len(first) or not torch.equal(order, in_place):
            self.model.select(order.flatten())
        self.model.read(self.beams.ids[:, :, self.steps - 1].flatten())

    def cancel(self, rows: Sequence[int]) -> None:
        """Takes rows out of the search, by their places; their sequences get no answer."""
        for row in [self.rows[index] for index in rows]:
            row.finished = "cancelled"
            for index, part in enumerate(self.parts):
                if self._sequences[int(self.owners[index])] is row:
                    part.finished, self.open[index] = "cancelled", False

    def _fill(self, index: int) -> None:
        """Writes a part's best finished hypotheses into it."""
        part = self.parts[index]
        found: list[SequenceState] = []
        wanted = self.params.num_return_sequences if self.params.num_beam_groups == 1 else self.beams_per_group
        for beam in range(wanted):
            length = int(self.finished.lengths[index, beam])
            if length:
                hypothesis = part if not found else part.sibling()
                hypothesis.ids = self.finished.ids[index, beam, :length].tolist()
                hypothesis.logprobs = self.finished.logprobs[index, beam, :length].tolist()
                hypothesis.score = float(self.finished.scores[index, beam])
                hypothesis.ended = bool(torch.isin(self.finished.ids[index, beam, length - 1], self.end_ids))
                hypothesis.finished = "stop" if bool(self.finished.stopped[index, beam]) else "length"
                found.append(hypothesis)
        part.finished = part.finished or "length"
        part.alternatives = found[1:]

    def _answer(self, done: Sequence[int]) -> None:
        """Takes out sequences whose groups are all done, with the best hypotheses of all groups."""
        for index in done:
            self._found[int(self.owners[index])].append(self.parts[index])
        for row, found in zip(self._sequences, self._found, strict=True):
            if len(found) < self.params.num_beam_groups or row.finished is not None:
                continue
            hypotheses = [each for part in found for each in (part, *part.alternatives) if each.score is not None]
            best = sorted(hypotheses, key=lambda each: -(each.score or 0.0))[: self.params.num_return_sequences]
            row.finished = "length"
            for each in best:
                each.alternatives = []
            for name in ("ids", "logprobs", "score", "ended", "finished") if best else ():
                setattr(row, name, getattr(best[0], name))
            row.alternatives = best[1:]
