"""Rollouts: completions of the policy for reinforcement learning, scored, and the stream that trains on them.

The one engine samples them with the current weights; the trainer's own forward pass computes their log-probabilities
again, which the ratio of the loss starts from. A `RolloutStream` is a stream of micro-batches for the one trainer: it
samples, scores and computes advantages, hands out mini-batches for some epochs, and samples again.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from quatrain.alignment.policy import (
    Reference,
    as_in_training,
    completion_states,
    evaluating,
    policy_of,
    spread,
)
from quatrain.alignment.rewards.base import RewardError, RewardScores
from quatrain.core.atomic import disk_errors, write_text
from quatrain.core.errors import InputError, QuatrainError
from quatrain.core.processes import process_number
from quatrain.data.batches import IGNORE_INDEX, TokenBatch, stack
from quatrain.generation.engine import Completion, Engine
from quatrain.generation.params import SamplingParams
from quatrain.training.chunked_loss import token_logprobs
from quatrain.training.distributed import device_of
from quatrain.training.distributed.group import gather

COLUMNS = ("generated", "sampler_logprobs", "old_logprobs", "reference_logprobs", "values", "advantages", "returns")
"""What a rollout holds for each token of its completion."""
TOLERANCE = 1e-4
"""The largest difference of two log-probabilities that must be equal at the start."""
SHOWN = 8
"""Rollouts of each phase that are written to the stage's folder."""
PADDED_TO = 8
"""Rows of a batch are padded to a multiple of so many tokens."""
NGRAM = 3
"""Tokens of the sequences whose repetition is counted."""


@dataclass(frozen=True)
class Prompt:
    """Token ids to complete, and the example that rewards receive; `text` is what people read."""

    ids: Sequence[int]
    example: Any = None
    text: str = ""


@dataclass(eq=False)
class Rollout:
    """A completion of a prompt, with what is known about each of its L tokens.

    `number` is the place of the prompt in the list of prompts; rollouts of one prompt drawn together share `group`.
    `ended`: an end token or a stop string ended it; otherwise it was cut at the limit of tokens. An end token that
    ended it is the last of `ids`. `score` is the weighted sum of the rewards and `parts` holds each of them.
    `unscorable` ones, and all that are not `learned`, have no labels; nor have tokens whose `generated` is 0, which are
    results of tools. None: all were generated.

    Tensors (L,) in float32: `sampler_logprobs` are the engine's, `old_logprobs` those that the trainer's forward pass
    computed with the same weights. Both are of the policy at the sampling temperature, without filters.
    """

    prompt: Sequence[int]
    ids: list[int]
    text: str = ""
    ended: bool = False
    group: int = 0
    number: int = 0
    score: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    unscorable: bool = False
    learned: bool = True
    generated: Tensor | None = None
    sampler_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    values: Tensor | None = None
    advantages: Tensor | None = None
    returns: Tensor | None = None

    def __len__(self) -> int:
        """Tokens of the row: prompt and completion."""
        return len(self.prompt) + len(self.ids)

    def record(self) -> dict[str, Any]:
        """Everything but the tokens, as JSON."""
        names = ("text", "ended", "group", "number", "score", "parts", "unscorable", "learned")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class RolloutBatch(TokenBatch):
    """B rollouts as rows, padded on the right: labels (B, T) are the completions' tokens, -100 elsewhere.

    Tensors (B, T) are aligned with the labels and 0 outside them: element t belongs to the token that is predicted
    after position t. A tensor that no rollout has is None. `rewards` (B,) are the scores; `ended` (B,) is False for
    truncated completions.
    """

    generated: Tensor | None = field(default=None, kw_only=True)
    advantages: Tensor | None = field(default=None, kw_only=True)
    old_logprobs: Tensor | None = field(default=None, kw_only=True)
    sampler_logprobs: Tensor | None = field(default=None, kw_only=True)
    reference_logprobs: Tensor | None = field(default=None, kw_only=True)
    values: Tensor | None = field(default=None, kw_only=True)
    returns: Tensor | None = field(default=None, kw_only=True)
    rewards: Tensor | None = field(default=None, kw_only=True)
    ended: Tensor | None = field(default=None, kw_only=True)


def collate_rollouts(
    rollouts: Sequence[Rollout], pad_id: int = 0, *, multiple: int = PADDED_TO, everything: bool = False
) -> RolloutBatch:
    """A batch of rollouts. `everything`: the tokens of rollouts that are not learned are labels too."""
    rows = [[*rollout.prompt, *rollout.ids][:-1] for rollout in rollouts]
    input_ids = stack(rows, pad_id, multiple=multiple)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    columns = {name: torch.zeros(input_ids.shape) for name in COLUMNS if any(_has(each, name) for each in rollouts)}
    for row, rollout in enumerate(rollouts):
        start = len(rollout.prompt) - 1
        place = slice(start, start + len(rollout.ids))
        if rollout.learned or everything:
            labels[row, place] = torch.tensor(rollout.ids, dtype=labels.dtype)
            if rollout.generated is not None:
                labels[row, place] = labels[row, place].masked_fill(rollout.generated == 0, IGNORE_INDEX)
        for name, column in columns.items():
            if (values := getattr(rollout, name)) is not None:
                column[row, place] = values
    return RolloutBatch.of(
        input_ids,
        labels,
        rewards=torch.tensor([rollout.score for rollout in rollouts]),
        ended=torch.tensor([rollout.ended for rollout in rollouts]),
        **columns,
    )


def _generated(completion: Completion) -> Tensor | None:
    """1.0 for each token that the policy generated, 0.0 for results of tools; None where there are none of these."""
    return torch.tensor([float(not each) for each in completion.given]) if any(completion.given) else None


def _has(rollout: Rollout, name: str) -> bool:
    return getattr(rollout, name) is not None


def padded(rollouts: Sequence[Rollout], name: str) -> tuple[Tensor, Tensor]:
    """A column of all rollouts as one tensor (N, L), 0 on the right, and the mask (N, L) of its tokens."""
    rows = [getattr(rollout, name) for rollout in rollouts]
    lengths = torch.tensor([len(row) for row in rows])
    values = pad_sequence(rows, batch_first=True)
    return values, torch.arange(values.shape[1]) < lengths[:, None]


class Scores(Protocol):
    """The rewards of a run: `quatrain.alignment.rewards.base.WeightedRewards`."""

    def score(self, examples: Sequence[Any], completions: Sequence[str]) -> RewardScores:
        """Score each completion of its example."""
        ...


class PolicyObjective:
    """An objective that learns from rollouts; base of PPO and GRPO.

    `module` is what the trainer trains: an `ActorCritic` or a `Model`. A subclass defines `advantages` and `loss`.
    """

    def __init__(self, *, temperature: float = 1.0, pad_id: int = 0, reference: Reference | None = None):
        if not temperature > 0:
            raise InputError(
                f"temperature: {temperature}; must be above 0: greedy completions explore nothing, and have no ratio"
            )
        self.temperature, self.pad_id, self.reference = temperature, pad_id, reference

    def collate(self, rollouts: Sequence[Rollout]) -> RolloutBatch:
        """A micro-batch of rollouts."""
        return collate_rollouts(rollouts, self.pad_id)

    def loss(self, module: Any, batch: RolloutBatch) -> tuple[Tensor, int | Tensor, dict[str, float | Tensor]]:
        """The summed loss, its weight, and metrics summed alike; see `training.objectives`."""
        raise NotImplementedError

    def advantages(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Set `advantages` (and `returns`) of all rollouts of a phase; returns metrics.

        May set `learned` to False. All processes call it with the rollouts of all of them.
        """
        raise NotImplementedError

    def keeps(self, group: Sequence[Rollout]) -> bool:
        """Whether the rollouts of one prompt are used; otherwise another prompt may take their place."""
        return True

    def measure(self, module: nn.Module, batch: RolloutBatch) -> dict[str, Tensor]:
        """What is measured once, with the weights that drew the rollouts: tensors (B, T) by the names of columns.

        Also their "entropy".
        """
        policy = policy_of(module)
        with as_in_training(module):
            states, labels, mask = completion_states(policy, batch)
            logprobs, entropy = token_logprobs(policy, states, labels, self.temperature, entropy="value")
            own = self.measure_states(module, batch, states, mask)
        measured = {"old_logprobs": logprobs, "entropy": entropy} | own
        measured = {name: spread(values, mask) for name, values in measured.items()}
        if self.reference is not None:
            measured["reference_logprobs"] = self.reference.logprobs(batch, self.temperature)
        return measured

    def measures(self, plan: RolloutPlan) -> bool:
        """Whether `measure` is needed in phases after the first, where it also checks the start."""
        return True

    def measure_states(self, module: nn.Module, batch: RolloutBatch, states: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Further columns (M,) of a phase, from the policy's hidden states (M, C) at the True places of the mask."""
        return {}

    def check_start(self, module: nn.Module, batch: RolloutBatch) -> None:
        """Check what must hold before the first step: the ratio is 1 and the KL is 0.

        Raises QuatrainError that names what differs.
        """
        policy = policy_of(module)
        states, labels, mask = completion_states(policy, batch)
        logprobs = token_logprobs(policy, states, labels, self.temperature)[0].detach()
        for name, expected, other in (
            ("the ratio is not 1", batch.old_logprobs, "the log-probabilities of the rollouts"),
            ("the KL is not 0", batch.reference_logprobs, "the log-probabilities of the reference"),
        ):
            if expected is None or not len(logprobs):
                continue
            gap = float((logprobs - expected[mask]).abs().max())
            if not gap <= TOLERANCE:
                raise QuatrainError(
                    f"Before the first step {name}: the log-probabilities of the policy differ from {other} by up to "
                    f"{gap:.3g} nats, although the weights are the same. Dropout, or a reference that is not the model "
                    "at the start, would do that."
                )

    def state(self) -> dict[str, Any]:
        """What changes from phase to phase, as JSON."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""


@dataclass(frozen=True)
class RolloutPlan:
    """How many rollouts a phase has, and how they become optimizer steps.

    A phase draws `prompts` prompts with `samples` completions each, and passes over them `epochs` times in
    `minibatches` optimizer steps of `accumulation` micro-batches. Groups that the objective does not keep are drawn
    again from other prompts, at most `attempts` times in all. A run whose rewards have given all completions the same
    score for `constant_phases` phases, from the first one on, stops; 0 disables this.
    """

    prompts: int
    samples: int = 1
    minibatches: int = 1
    epochs: int = 1
    accumulation: int = 1
    attempts: int = 1
    constant_phases: int = 5

    def __post_init__(self) -> None:
        rollouts, parts = self.prompts * self.samples, self.minibatches * self.accumulation
        if rollouts < parts:
            raise InputError(
                f"{self.prompts} prompts with {self.samples} samples are {rollouts} rollouts; they cannot be divided "
                f"into minibatches = {self.minibatches} of accumulation = {self.accumulation} micro-batches. Use more "
                "prompts or samples, or fewer of these."
            )

    @property
    def steps(self) -> int:
        """Optimizer steps of a phase."""
        return self.epochs * self.minibatches

    def micro_batches(self, lengths: Sequence[int], seed: int, phase: int) -> list[list[int]]:
        """The rollouts of each micro-batch of a phase, whose rows have these lengths in tokens.

        Every epoch shuffles them into mini-batches. Within one, whose micro-batches are summed, rows of similar length
        are together (`balanced`).
        """
        batches = []
        for epoch in range(self.epochs):
            order = np.random.default_rng((seed, phase, epoch)).permutation(len(lengths))
            for part in np.array_split(order, self.minibatches):
                places = balanced([lengths[number] for number in part], self.accumulation)
                batches += [[int(part[place]) for place in micro] for micro in places]
        return batches


def balanced(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Places of rows in exactly `parts` batches, longest rows first: the largest batch, with its padding, is smallest.

    There must be a row for each batch.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    sizes = [-(-lengths[place] // PADDED_TO) * PADDED_TO for place in order]

    def divided(most: int) -> list[list[int]]:
        """Batches of at most so many tokens, except for single rows."""
        batches, start = [], 0
        while start < len(order):
            end = min(len(order), start + max(1, most // sizes[start]))
            batches.append(order[start:end])
            start = end
        return batches

    low, high = sizes[0], sizes[0] * len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(divided(middle)) <= parts else (middle + 1, high)
    batches = divided(low)
    while len(batches) < parts:
        widest = max(range(len(batches)), key=lambda number: len(batches[number]))
        rows = batches[widest]
        batches[widest : widest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return batches


def seed_of(*numbers: int) -> int:
    """A seed of 63 bits that depends on all of these numbers."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Sampler:
    """Draws and scores completions of prompts. `rows` run at once in the engine.

    The noise of a completion depends on (seed, phase, draw, sample) alone, so that it does not matter which process
    draws it, and with which others.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Prompt],
        rewards: Scores,
        params: SamplingParams,
        *,
        samples: int = 1,
        seed: int = 0,
        rows: int = 64,
    ):
        if not prompts:
            raise InputError("There is no prompt to complete. Check the data with `quatrain data check`.")
        self.engine, self.prompts, self.rewards = engine, prompts, rewards
        self.params, self.samples, self.seed, self.rows = params, samples, seed, rows
        self._orders: dict[int, np.ndarray] = {}

    def prompt_number(self, draw: int) -> int:
        """The prompt of a draw; each pass over the prompts has an order of its own."""
        epoch, place = divmod(draw, len(self.prompts))
        if epoch not in self._orders:
            self._orders = {epoch: np.random.default_rng((self.seed, epoch)).permutation(len(self.prompts))}
        return int(self._orders[epoch][place])

    def draw(self, phase: int, draws: Sequence[int]) -> list[Rollout]:
        """The unscored completions of these draws, `samples` of each, in their order."""
        pairs = [(draw, sample) for draw in draws for sample in range(self.samples)]
        numbers = [self.prompt_number(draw) for draw, _ in pairs]
        with evaluating(self.engine.model):
            completions = self.engine.generate(
                [list(self.prompts[number].ids) for number in numbers],
                self.params,
                batch_size=self.rows,
                seeds=[seed_of(self.seed, phase, draw, sample) for draw, sample in pairs],
            )
        return [
            Rollout(
                self.prompts[number].ids,
                completion.ids,
                completion.text,
                completion.finish_reason == "stop",
                group=draw,
                number=number,
                generated=_generated(completion),
                sampler_logprobs=torch.tensor(completion.logprobs),
            )
            for (draw, _), number, completion in zip(pairs, numbers, completions, strict=True)
        ]

    def score(self, rollouts: Sequence[Rollout]) -> None:
        """Give rollouts their scores. Raises RewardError for a broken reward."""
        if not rollouts:
            return
        examples = [self.prompts[rollout.number].example for rollout in rollouts]
        scores = self.rewards.score(examples, [rollout.text for rollout in rollouts])
        for index, rollout in enumerate(rollouts):
            rollout.score = float(scores.total[index])
            rollout.parts = {name: float(values[index]) for name, values in scores.parts.items()}
            rollout.unscorable = bool(scores.unscorable[index])
            rollout.learned = not rollout.unscorable


def saved_failure(folder: Path | None, records: Sequence[dict[str, Any]], error: QuatrainError) -> QuatrainError:
    """The error, with the name of the file in the folder in which the completions are that a broken reward got."""
    if folder is None:
        return error
    rank = process_number()[0]
    path = folder / f"failed-rollouts{f'-{rank}' if rank else ''}.jsonl"
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
    error.message = f"{error.message} The rollouts are in {path}."
    error.args = (error.message,)
    return error


@dataclass(frozen=True)
class HeldOutScores:
    """Rewards of completions of these prompts; `folder` receives `failed-rollouts.jsonl` if one of them breaks."""

    rewards: Scores
    prompts: Sequence[Prompt]
    folder: Path | None = None

    def score(self, examples: Sequence[Any], completions: Sequence[str]) -> RewardScores:
        """Score one completion of each prompt. Raises RewardError for a broken reward."""
        try:
            return self.rewards.score(examples, completions)
        except QuatrainError as error:
            texts = [prompt.text for prompt in self.prompts]
            pairs = zip(texts, completions, strict=True)
            records = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
            raise saved_failure(self.folder, records, error) from error.__cause__


class RolloutStream:
    """Micro-batches of rollouts for the trainer, drawn anew with the current weights at the start of each phase.

    `module` is what the trainer trains; the engine of `sampler` runs the same model. Several processes divide the draws
    and share all rollouts, so that statistics over a phase are those of all. The state of the stream holds the rollouts
    of an unfinished phase: a resumed run is bit-exact on a CPU. `folder` receives `rollouts.jsonl`, and
    `failed-rollouts.jsonl` if a reward breaks.
    """

    def __init__(
        self,
        module: nn.Module,
        objective: PolicyObjective,
        sampler: Sampler,
        plan: RolloutPlan,
        *,
        folder: Path | None = None,
    ):
        self.module, self.objective, self.sampler, self.plan, self.folder = module, objective, sampler, plan, folder
        self.phase = -1
        self.drawn = self.index = 0
        self.rollouts: list[Rollout] = []
        self.constant = 0
        """Phases from the first one on in which all scores were the same; -1 once they have differed."""
        self.seconds = {"rollout": 0.0, "scoring": 0.0, "measuring": 0.0}
        self._batches: list[list[int]] = []
        self._metrics: dict[str, float] = {}
        self._is_continuing = False

    @property
    def steps_per_phase(self) -> int:
        """Optimizer steps between two times of sampling."""
        return self.plan.steps

    def next(self) -> list[Rollout]:
        """The rollouts of the next micro-batch; a new phase begins when the last one is used up."""
        return [self.rollouts[number] for number in self._advance()]

    def skip(self) -> None:
        """Advance past a micro-batch of another process."""
        self._advance()

    def _advance(self) -> list[int]:
        if self.index >= len(self._batches):
            self._collect()
        self.index += 1
        return self._batches[self.index - 1]

    def _collect(self) -> None:
        """Draw and score the rollouts of the next phase, and compute their advantages."""
        self.phase, self.index = self.phase + 1, 0
        metrics = self._draw_kept()
        self._batches = self._divided()
        started = time.perf_counter()
        self._check_spread()
        if self.phase == 0 or self.objective.measures(self.plan):
            metrics |= self._measure()
        metrics |= self._statistics() | self.objective.advantages(self.rollouts)
        if self.phase == 0:
            self._check_start()
        self.seconds["measuring"] += time.perf_counter() - started
        self._metrics = metrics
        self._write()

    def _draw_kept(self) -> dict[str, float]:
        """The groups that the objective keeps; where there are too few after all attempts, others fill the phase."""
        kept: list[list[Rollout]] = []
        spare: list[list[Rollout]] = []
        before = dict(self.seconds)
        attempts = 0
        while attempts < self.plan.attempts and len(kept) < self.plan.prompts:
            attempts += 1
            rollouts = self._draw_scored(range(self.drawn, self.drawn + self.plan.prompts))
            self.drawn += self.plan.prompts
            for start in range(0, len(rollouts), self.plan.samples):
                group = rollouts[start : start + self.plan.samples]
                (kept if self.plan.attempts == 1 or self.objective.keeps(group) else spare).append(group)
        dropped = len(spare)
        groups = (kept + spare)[: self.plan.prompts]
        for number, group in enumerate(groups):
            for rollout in group:
                rollout.group = number
        self.rollouts = [rollout for group in groups for rollout in group]
        metrics = {f"{name}_seconds": self.seconds[name] - before[name] for name in ("rollout", "scoring")}
        return metrics if self.plan.attempts == 1 else metrics | {"attempts": attempts, "groups_dropped": dropped}

    def _draw_scored(self, draws: Sequence[int]) -> list[Rollout]:
        """The scored rollouts of these draws, which the processes divide."""
        rank, size = process_number()
        own = [int(draw) for draw in np.array_split(np.asarray(draws), size)[rank]]
        started = time.perf_counter()
        rollouts = self.sampler.draw(self.phase, own) if own else []
        drawn = time.perf_counter()
        self.seconds["rollout"] += drawn - started
        try:
            self.sampler.score(rollouts)
        except QuatrainError as error:
            raise self._saved_failure(rollouts, error) from error.__cause__
        self.seconds["scoring"] += time.perf_counter() - drawn
        if size == 1:
            return rollouts
        parts = gather([_packed(rollout) for rollout in rollouts])
        return [self._unpacked(packed) for part in parts for packed in part]

    def _unpacked(self, packed: dict[str, Any]) -> Rollout:
        columns = {name: packed.pop(name) for name in ("generated", "sampler_logprobs")}
        rollout = Rollout(self.sampler.prompts[packed["number"]].ids, **packed)
        for name, column in columns.items():
            setattr(rollout, name, None if column is None else torch.tensor(column))
        return rollout

    def _check_spread(self) -> None:
        """Raise RewardError once the rewards have never told one completion from another."""
        scores = {rollout.score for rollout in self.rollouts if not rollout.unscorable}
        count = len(self.rollouts)
        self.constant = -1 if self.constant < 0 or len(scores) > 1 or count < 2 else self.constant + 1
        if self.plan.constant_phases and self.constant >= self.plan.constant_phases:
            parts = ", ".join(sorted({name for rollout in self.rollouts for name in rollout.parts}))
            shown = f"the score {scores.pop():g}" if scores else "no score"
            reason = f"gave all completions of the first {self.constant} phases {shown}: nothing can be learned from it"
            raise self._saved_failure(self.rollouts, RewardError(parts, reason))

    def _saved_failure(self, rollouts: Sequence[Rollout], error: QuatrainError) -> QuatrainError:
        """The error, with the name of the file in which the rollouts are that a broken reward could not score."""
        return saved_failure(self.folder, [self._shown(rollout) for rollout in rollouts], error)

    def _measure(self) -> dict[str, float]:
        """Compute the columns of all rollouts in the micro-batches in which the first epoch reads them."""
        rank, size = process_number()
        count = self.plan.minibatches * self.plan.accumulation
        own: list[tuple[int, dict[str, list[float]]]] = []
        for micro in self._batches[rank:count:size]:
            rows = [self.rollouts[number] for number in micro]
            batch = collate_rollouts(rows, self.objective.pad_id, everything=True).to(device_of(self.module))
            measured = {name: values.cpu() for name, values in self.objective.measure(self.module, batch).items()}
            for row, number in enumerate(micro):
                rollout = self.rollouts[number]
                place = slice(len(rollout.prompt) - 1, len(rollout) - 1)
                own.append((number, {name: values[row, place].tolist() for name, values in measured.items()}))
        entropy, tokens = 0.0, 0
        columns = dict(pair for part in gather(own) for pair in part)
        for number, rollout in enumerate(self.rollouts):
            values = columns[number]
            entropy, tokens = entropy + math.fsum(values.pop("entropy")), tokens + len(rollout.ids)
            for name, column in values.items():
                setattr(rollout, name, torch.tensor(column))
        return {"entropy": entropy / max(1, tokens)}

    def _statistics(self) -> dict[str, float]:
        """Metrics of the rollouts of a phase, by the names that reports and alarms know."""
        rollouts = self.rollouts
        judged = [rollout for rollout in rollouts if not rollout.unscorable]
        scores = torch.tensor([rollout.score for rollout in judged])
        metrics = {
            "reward": float(scores.mean()) if judged else math.nan,
            "reward_std": float(scores.std()) if len(judged) > 1 else 0.0,
        }
        for name in sorted({name for rollout in judged for name in rollout.parts}):
            values = [rollout.parts[name] for rollout in judged]
            metrics[f"reward/{name}"] = _mean(values)
            metrics[f"constant/{name}"] = float(len(values) > 1 and min(values) == max(values))
        if all(rollout.old_logprobs is not None for rollout in rollouts):
            gaps = [(each.old_logprobs - each.sampler_logprobs).abs().max() for each in rollouts]  # type: ignore[operator]
            metrics["sampler_gap"] = float(torch.stack(gaps).max())
        if all(rollout.reference_logprobs is not None for rollout in rollouts):
            # Nats per completion; the sum over its tokens of log p - log q.
            pairs = [(each.old_logprobs - each.reference_logprobs).sum() for each in rollouts]  # type: ignore[operator]
            metrics["kl"] = float(torch.stack(pairs).double().mean())
        return metrics | {
            "completion_length": _mean([len(rollout.ids) for rollout in rollouts]),
            "repetition": _mean([repetition(rollout.ids) for rollout in rollouts]),
            "distinct": distinct([rollout.ids for rollout in rollouts]),
            "ended_fraction": _mean([float(rollout.ended) for rollout in rollouts]),
            "unscorable": 1 - len(judged) / len(rollouts),
        }

    def _check_start(self) -> None:
        rows = [self.rollouts[number] for number in self._batches[process_number()[0]]]
        with torch.enable_grad():
            self.objective.check_start(self.module, self.objective.collate(rows).to(device_of(self.module)))

    def take_metrics(self) -> dict[str, float]:
        """The metrics of the newest phase, once."""
        metrics, self._metrics = self._metrics, {}
        return metrics

    def _shown(self, rollout: Rollout) -> dict[str, Any]:
        prompt = self.sampler.prompts[rollout.number]
        record = rollout.record() | {"prompt": prompt.text, "completion": rollout.text, "tokens": len(rollout.ids)}
        return {name: value for name, value in record.items() if name not in ("text", "number")}

    def _write(self) -> None:
        """Append the phase to `rollouts.jsonl`; lines of later phases, from before a resume, are dropped."""
        if self.folder is None or process_number()[0]:
            return
        path = self.folder / "rollouts.jsonl"
        record = {
            "phase": self.phase,
            "step": self.phase * self.plan.steps,
            "scores": [rollout.score for rollout in self.rollouts],
            "lengths": [len(rollout.ids) for rollout in self.rollouts],
            "samples": [self._shown(rollout) for rollout in self.rollouts[:SHOWN]],
        }
        if not self._is_continuing:
            write_text(path, "".join(line for line in _lines(path) if json.loads(line)["phase"] < self.phase))
            self._is_continuing = True
        with disk_errors(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    # State

    def state(self) -> dict[str, Any]:
        """The position in the phase and, if it is unfinished, its rollouts without their tokens."""
        return {
            "phase": self.phase,
            "drawn": self.drawn,
            "index": self.index,
            "constant": self.constant,
            "seconds": self.seconds,
            "objective": self.objective.state(),
            "rollouts": [rollout.record() for rollout in self._unfinished],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a state; `load_tensors` completes it."""
        self.phase, self.drawn, self.index = state["phase"], state["drawn"], state["index"]
        self.constant, self.seconds = state["constant"], state["seconds"]
        self.objective.load_state(state["objective"])
        prompts = self.sampler.prompts
        self.rollouts = [Rollout(prompts[record["number"]].ids, [], **record) for record in state["rollouts"]]
        self._batches = []

    @property
    def _unfinished(self) -> list[Rollout]:
        return self.rollouts if self.index < len(self._batches) else []

    def tensors(self) -> dict[str, Tensor]:
        """The tokens of the rollouts of an unfinished phase, and their columns, one after the other."""
        rollouts = self._unfinished
        if not rollouts:
            return {}
        tensors = {
            "lengths": torch.tensor([len(rollout.ids) for rollout in rollouts]),
            "ids": torch.tensor([token for rollout in rollouts for token in rollout.ids]),
        }
        for name in COLUMNS:
            columns = [column for rollout in rollouts if (column := getattr(rollout, name)) is not None]
            if len(columns) == len(rollouts):
                tensors[name] = torch.cat(columns)
        return tensors

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Give the rollouts of `load_state` their tokens and columns."""
        if not self.rollouts:
            return
        lengths = tensors["lengths"].tolist()
        for rollout, ids in zip(self.rollouts, tensors["ids"].split(lengths), strict=True):
            rollout.ids = ids.tolist()
        for name in set(COLUMNS) & set(tensors):
            for rollout, column in zip(self.rollouts, tensors[name].split(lengths), strict=True):
                setattr(rollout, name, column.clone())
        self._batches = self._divided()

    def _divided(self) -> list[list[int]]:
        """The rollouts of each micro-batch of this phase."""
        return self.plan.micro_batches([len(each) for each in self.rollouts], self.sampler.seed, self.phase)


def repetition(ids: Sequence[int]) -> float:
    """The share of a completion's sequences of three tokens that occurred in it before; 0 for a shorter one."""
    grams = [tuple(ids[start : start + NGRAM]) for start in range(len(ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(completions: Sequence[Sequence[int]]) -> float:
    """The share of different ones among all pairs of neighbouring tokens in completions (Li et al. 2016); 1 for none.

    A policy that writes nearly the same for every prompt has few, though no completion repeats itself.
    """
    pairs = [pair for ids in completions for pair in pairwise(ids)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def _packed(rollout: Rollout) -> dict[str, Any]:
    columns = {name: getattr(rollout, name) for name in ("generated", "sampler_logprobs")}
    return (
        rollout.record()
        | {"ids": rollout.ids}
        | {name: None if column is None else column.tolist() for name, column in columns.items()}
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def _lines(path: Path) -> Iterator[str]:
    """The whole lines of a file; none if there is no file."""
    if path.is_file():
        yield from (line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n"))
