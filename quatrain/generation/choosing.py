"""`TokenChooser`: from the logits of a batch to the next token of each row, every row by its own parameters.

Rows of one batch may differ in parameters, length, end tokens and progress. Rows with equal parameters are processed
together, by functions that treat each row alone, and a row is drawn with its own noise: the tokens of a row do not
depend on the rest of the batch.

The order is transformers': first the constraints, which depend on the tokens so far (`constraints`), then the filters
of sampling (`filters`), then the draw; greedy decoding takes the likeliest token that the constraints leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from quatrain.core.errors import InputError, QuatrainError
from quatrain.generation.constraints import PADDING, Constraint, DecodingState, GenerationRules, constraints
from quatrain.generation.filters import BROKEN, NO_TOKEN_LEFT, Processor, draw, processors
from quatrain.generation.params import SamplingParams
from quatrain.generation.requests import SequenceState

SPARE = 64
"""Columns by which the tensor of a batch's tokens grows."""


@dataclass
class Choice:
    """The next token of each row of a batch."""

    tokens: list[int]
    logprobs: list[float]
    """Log-probability of each token under the model itself, before all processors; in nats."""
    problems: list[QuatrainError | None]
    """Why no token could be chosen for a row, whose other values then mean nothing; None for the other rows."""

    def append_to(self, rows: Sequence[SequenceState]) -> None:
        """Adds the tokens to the rows that they were chosen for. Raises the first problem."""
        for problem in self.problems:
            if problem is not None:
                raise problem
        for row, token, logprob in zip(rows, self.tokens, self.logprobs, strict=True):
            row.append(token, logprob)


class TokenChooser:
    """Chooses the next tokens of sequences of one model.

    `rules` are the model's own, from its generation_config.json; each row's parameters override parts of them.
    """

    def __init__(self, rules: GenerationRules | None = None, *, encoder_decoder: bool = False):
        self.rules, self.encoder_decoder = rules or GenerationRules(), encoder_decoder
        self._plans: WeakValueDictionary[tuple[object, ...], _Plan] = WeakValueDictionary()

    @torch.inference_mode()
    def choose(self, logits: Tensor, rows: Sequence[SequenceState]) -> Choice:
        """The next token of each row: logits (B, V) of any floating type, one row of them per sequence.

        The sequences are not changed. A row whose logits are not finite (QuatrainError) or whose constraints forbid
        every token (InputError) gets its problem in the result.
        """
        if not rows:
            return Choice([], [], [])
        logits = logits.float()
        processed = self.process(logits, rows)
        best, tokens = processed.max(dim=-1)
        total = logits.logsumexp(dim=-1)
        tokens = self._draw(processed, best, tokens, rows)
        logprobs = logits.gather(-1, tokens[:, None])[:, 0] - total
        packed = torch.stack([tokens.double(), logprobs.double(), total.double(), best.double()]).tolist()
        numbers, chosen, totals, bests = packed
        problems = [_problem(*values) for values in zip(chosen, totals, bests, strict=True)]
        return Choice([int(number) for number in numbers], chosen, problems)

    @torch.inference_mode()
    def process(self, logits: Tensor, rows: Sequence[SequenceState]) -> Tensor:
        """The logits (B, V) in float32 after every constraint and filter; a token that is ruled out has -inf."""
        plans = [self._plan(row, logits.device) for row in rows]
        if all(plan is plans[0] for plan in plans):
            return plans[0].process(logits, rows)
        groups: dict[_Plan, list[int]] = {}
        for index, plan in enumerate(plans):
            if plan.changes:
                groups.setdefault(plan, []).append(index)
        result = logits.clone() if groups else logits
        for plan, indices in groups.items():
            chosen = torch.tensor(indices, device=logits.device)
            result[chosen] = plan.process(logits[chosen], [rows[index] for index in indices])
        return result

    def constraints(self, params: SamplingParams, end_ids: Sequence[int], device: torch.device) -> list[Constraint]:
        """The constraints of sequences with these parameters and end tokens."""
        ends = torch.tensor([] if params.ignore_eos else list(end_ids), dtype=torch.long, device=device)
        return constraints(self.rules, params, ends, encoder_decoder=self.encoder_decoder)

    def _draw(self, processed: Tensor, best: Tensor, greedy: Tensor, rows: Sequence[SequenceState]) -> Tensor:
        """The tokens (B,): drawn for rows that sample, the likeliest for the others."""
        sampled = [index for index, row in enumerate(rows) if row.params.temperature]
        if not sampled:
            return greedy
        noise = torch.tensor([rows[index].noise(len(rows[index].ids)) for index in sampled], dtype=torch.float64)
        # A row without a distribution is reported by `choose`; here any token does.
        usable = torch.where(best.isfinite()[:, None], processed, 0.0)
        if len(sampled) == len(rows):
            return draw(usable, noise.to(processed.device))
        chosen = torch.tensor(sampled, device=processed.device)
        return greedy.index_copy(0, chosen, draw(usable[chosen], noise.to(processed.device)))

    def _plan(self, row: SequenceState, device: torch.device) -> _Plan:
        plan = row.plan
        if not isinstance(plan, _Plan) or plan.place != (self, device):
            key = (row.params, row.end_ids, device)
            plan = self._plans.get(key)
            if plan is None:
                chain = self.constraints(row.params, row.end_ids, device)
                plan = self._plans[key] = _Plan(chain, processors(row.params), (self, device))
            row.plan = plan
        return plan


class _Plan:
    """What happens to the logits of sequences with equal parameters."""

    def __init__(self, chain: list[Constraint], filters: list[Processor], place: tuple[TokenChooser, torch.device]):
        self.constraints, self.filters, self.place = chain, filters, place
        self.changes = bool(chain or filters)
        self.history = _History()

    def process(self, logits: Tensor, rows: Sequence[SequenceState]) -> Tensor:
        if self.constraints:
            state = self.history.state(rows, logits.device)
            for constrain in self.constraints:
                logits = constrain(logits, state)
        if not self.filters:
            return logits
        usable = logits.amax(dim=-1, keepdim=True).isfinite()
        # A row without a distribution stays as it is, for `choose` to report; filters would raise for the whole batch.
        safe = whole = logits if bool(usable.all()) else logits.where(usable, 0.0)
        for process in self.filters:
            safe = process(safe)
        return safe if whole is logits else safe.where(usable, logits)


class _History:
    """The tokens of a group of rows as one tensor, PADDING on the left.

    While the same rows grow by one token at a time, a step costs one column; any other change writes it anew.
    """

    def __init__(self) -> None:
        self.rows: list[SequenceState] = []
        self.lengths: list[tuple[int, int]] = []
        self.width = 0
        self.tokens = self.start = self.limits = self.new = torch.empty(0)

    def state(self, rows: Sequence[SequenceState], device: torch.device) -> DecodingState:
        """The state of these rows, whose next tokens are to be chosen."""
        lengths = [(len(row.ids), row.edits) for row in rows]
        same = len(rows) == len(self.rows) and all(a is b for a, b in zip(rows, self.rows, strict=True))
        grown = [(length + 1, edits) for length, edits in self.lengths]
        if same and lengths == grown and self.width < self.tokens.shape[1]:
            self.tokens[:, self.width] = torch.tensor([row.ids[-1] for row in rows], device=device)
            self.new = self.new + 1
            self.width += 1
        elif not same or lengths != self.lengths:
            self._write(rows, device)
        self.lengths = lengths
        return DecodingState(self.tokens[:, : self.width], self.start, self.limits, self.new)

    def _write(self, rows: Sequence[SequenceState], device: torch.device) -> None:
        listed = [[*row.prefix, *row.ids] for row in rows]
        self.rows, self.width = list(rows), max(map(len, listed))
        padded = [[PADDING] * (self.width - len(ids)) + ids + [PADDING] * SPARE for ids in listed]
        self.tokens = torch.tensor(padded, device=device)
        columns = [[len(row.prefix), row.limit, len(row.ids)] for row in rows]
        self.start, self.limits, self.new = torch.tensor(columns, device=device).split(1, dim=1)


def _problem(logprob: float, total: float, best: float) -> QuatrainError | None:
    """Why a row has no token: its log-probability, the sum of its logits (log), and its best processed logit."""
    finite = abs(total) < float("inf")
    if finite and best == float("-inf"):
        return InputError(NO_TOKEN_LEFT)
    if not finite or not abs(best) < float("inf") or not abs(logprob) < float("inf"):
        return QuatrainError(BROKEN)
    return None
