"""Direct preference optimization and its relatives on pairs of answers, an objective of the one trainer.

`DPO(loss=…)` chooses the loss (`quatrain.alignment.losses`). `sft_weight` adds the chosen answers' loss per token (RPO,
Pang et al. 2024, arXiv 2404.19733). The reference is the model before training: its log-probabilities are computed
once, or by the model itself with its adapters disabled, so that no second copy of the model is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from quatrain.adapters.apply import adapters_disabled
from quatrain.alignment.losses import Answers, LossSettings, pair_loss, settings_problems
from quatrain.alignment.policy import evaluating, label_logprobs
from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX, TokenBatch, TokenExample, pad, stack
from quatrain.evaluation.metrics.objectives import batches_of
from quatrain.models.transformer.stack import Model
from quatrain.training.objectives import Objective
from quatrain.training.objectives.metrics import Metric, MetricSums

FIRST_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.02}
"""The most by which the first loss may differ from its exact value, by the dtype of the weights."""


@dataclass(frozen=True)
class PreferenceExample:
    """A prompt with a chosen and a rejected answer as token ids; answers end with the end token.

    The references are the log-probabilities of the answers (nats, summed over tokens) under the reference model.
    """

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]
    reference_chosen: float | None = None
    reference_rejected: float | None = None

    def __len__(self) -> int:
        """Tokens of the two rows of the example, padding included."""
        return 2 * (len(self.prompt) + max(len(self.chosen), len(self.rejected)))

    def rows(self) -> tuple[TokenExample, TokenExample]:
        """The chosen and the rejected text, with the tokens of the answer marked as learned."""
        return answer_row(self.prompt, self.chosen), answer_row(self.prompt, self.rejected)


def answer_row(prompt: Sequence[int], answer: Sequence[int]) -> TokenExample:
    """A prompt and an answer as one text, with the tokens of the answer marked as learned."""
    return TokenExample([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))


@dataclass(frozen=True)
class PreferenceBatch(TokenBatch):
    """B pairs: `input_ids` and `labels`, and `reference` (2B,), the log-probabilities of chosen, then rejected answers.

    In two rows a pair, (2B, T), the chosen rows come first. In one row a pair, (B, T), both answers share the prompt:
    `branches` (B, T) is 0 in the prompt, 1 in the chosen and 2 in the rejected answer, and `positions` count from the
    prompt in each. `reference` is None if the model itself gives it. Padding is on the right: attention is causal and
    padding has no label.
    """

    reference: Tensor | None = field(kw_only=True, default=None)

    @property
    def branches(self) -> Tensor | None:
        """The branch of each token, (B, T); None if each answer has a row of its own."""
        return self.inputs.get("branches")

    def of_answers(self, values: Tensor) -> Tensor:
        """Sums of values at the labels (like `labels`) over each answer, (2B,): chosen, then rejected."""
        if self.branches is None:
            return values.sum(dim=1)
        return torch.cat([values.masked_fill(self.branches != branch, 0).sum(dim=1) for branch in (1, 2)])


SHARED_GAIN = 1.3
"""Pairs share their prompts where two rows a pair would have this many times the tokens."""


def collate_pairs(examples: Sequence[PreferenceExample], pad_id: int, *, share: bool = True) -> PreferenceBatch:
    """Pairs as a batch without references: in one row each with `share`, where that saves enough, else in two rows."""
    pairs = [example.rows() for example in examples]
    whole = pad([chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs], pad_id)
    if share and all(len(example.prompt) for example in examples):
        length = max(len(each.prompt) - 1 + len(each.chosen) + len(each.rejected) for each in examples)
        if whole.size >= SHARED_GAIN * len(examples) * (-(-length // 8) * 8):
            return _in_one_row(examples, pad_id)
    return PreferenceBatch.of(whole.input_ids, whole.labels)


def _in_one_row(examples: Sequence[PreferenceExample], pad_id: int) -> PreferenceBatch:
    """Each pair as: the prompt without its last token; that token and the chosen answer; it and the rejected answer.

    The last token of the prompt is in both branches, because it predicts the first token of both answers.
    """
    columns: tuple[list[list[int]], ...] = ([], [], [], [])
    for example in examples:
        *shared, last = example.prompt
        ids, labels = list(shared), [IGNORE_INDEX] * len(shared)
        positions, branches = list(range(len(shared))), [0] * len(shared)
        for branch, answer in enumerate((example.chosen, example.rejected), 1):
            ids += [last, *answer[:-1]]
            labels += answer
            positions += range(len(shared), len(shared) + len(answer))
            branches += [branch] * len(answer)
        for column, values in zip(columns, (ids, labels, positions, branches), strict=True):
            column.append(values)
    ids_, labels_, positions_, branches_ = (
        stack(column, fill) for column, fill in zip(columns, (pad_id, IGNORE_INDEX, 0, 0), strict=True)
    )
    return PreferenceBatch.of(ids_, labels_, positions=positions_, branches=branches_)


def pair_logprobs(model: Model, batch: PreferenceBatch) -> Tensor:
    """Log-probabilities (2B,) of the answers of B pairs, summed over tokens, in nats: chosen, then rejected."""
    hidden = model.hidden_states(**batch.inputs)
    return batch.of_answers(label_logprobs(model, hidden, batch.labels))


class PreferenceObjective(Objective, Protocol):
    """What the dpo stage needs of an objective: `DPO` and `KTO` have it."""

    name: str
    pad_id: int

    @property
    def needs_references(self) -> bool:
        """Whether the examples must have the reference's log-probabilities."""
        ...

    def add_references(self, model: Model, examples: Sequence[Any]) -> Sequence[Any]:
        """The examples with the log-probabilities of `model`, which is not trained yet."""
        ...

    def check_start(self, model: Model, examples: Sequence[Any]) -> None:
        """Raises InputError unless the untrained model equals its reference."""
        ...


class DPO:
    """The loss `loss` of each pair; "sigmoid" is -log sigmoid(beta h), h the gain in log-odds over the reference.

    `beta` defaults to the usual value of the loss. `label_smoothing` (cdpo, robust) is the assumed share of swapped
    pairs. `simpo_gamma` is SimPO's target margin. `sft_weight` weights the mean loss per token of the chosen answer,
    which is added. With `reference="base"` the log-probabilities of the reference are those of the model with its
    adapters disabled, computed at each step; "precomputed" ones are in the examples. With `share_prompts` both answers
    of a pair are in one row and share the prompt's keys and values where that saves enough; the model's configuration
    must have `supports_branches`. Raises InputError, with all problems, for an unknown loss, settings that the loss
    does not read, and values out of range.
    """

    def __init__(
        self,
        *,
        loss: str = "sigmoid",
        beta: float | None = None,
        label_smoothing: float = 0.0,
        simpo_gamma: float | None = None,
        sft_weight: float = 0.0,
        reference: str = "precomputed",
        share_prompts: bool = False,
        pad_id: int = 0,
    ):
        self.pair_loss = pair_loss(loss)
        beta = self.pair_loss.beta if beta is None else beta
        given = {"label_smoothing": label_smoothing or None, "simpo_gamma": simpo_gamma}
        settings = {name: value for name, value in given.items() if value is not None}
        problems = settings_problems(loss, beta, settings, sft_weight)
        if reference not in ("precomputed", "base"):
            problems.append(f'reference: {reference!r}; must be "precomputed" or "base"')
        if problems:
            raise InputError("DPO cannot be set up:", problems)
        self.name, self.settings = loss, LossSettings(beta=beta, **settings)
        self.sft_weight, self.reference, self.pad_id = sft_weight, reference, pad_id
        self.share_prompts = share_prompts

    @property
    def beta(self) -> float:
        """The factor of the rewards."""
        return self.settings.beta

    def collate(self, examples: Sequence[PreferenceExample]) -> PreferenceBatch:
        """Turn pairs into a batch. Raises ValueError for examples that lack the log-probabilities they need."""
        references = [e.reference_chosen for e in examples] + [e.reference_rejected for e in examples]
        batch = collate_pairs(examples, self.pad_id, share=self.share_prompts)
        return replace(batch, reference=self._references(references))

    def _references(self, values: Sequence[float | None]) -> Tensor | None:
        if not self.pair_loss.reference:
            return torch.zeros(len(values))
        if self.reference == "base":
            return None
        return reference_tensor(values)

    def loss(self, model: Model, batch: PreferenceBatch) -> tuple[Tensor, int, dict[str, Metric]]:
        """The loss summed over pairs, their number, and sums of accuracy, margin, rewards and log-probabilities.

        The reward of an answer is beta times its gain over the reference, or times its log-probability without one; of
        losses that compare answers per token it is per token.
        """
        logprobs = pair_logprobs(model, batch)
        reference = batch.reference
        if reference is None:
            with reference_mode(model):
                reference = pair_logprobs(model, batch)
        lengths = batch.of_answers((batch.labels != IGNORE_INDEX).long())
        parts = (values.chunk(2) for values in (logprobs, reference, lengths))
        chosen, rejected = (Answers(*each) for each in zip(*parts, strict=True))
        losses = self.pair_loss.compute(chosen, rejected, self.settings)
        metrics: dict[str, Metric] = {}
        weight = 1.0 if self.pair_loss.likelihood else self.sft_weight
        if weight:
            likelihood = -chosen.mean_logprob
            losses = losses + weight * likelihood
            metrics["sft_loss"] = likelihood.sum().detach()
        return losses.sum(), len(losses), metrics | self._metrics(chosen, rejected)

    @torch.no_grad()
    def _metrics(self, chosen: Answers, rejected: Answers) -> dict[str, Metric]:
        rewards = []
        for answers in (chosen, rejected):
            gain = answers.gain / answers.length if self.pair_loss.per_token else answers.gain
            rewards.append(self.beta * gain)
        margin = rewards[0] - rewards[1]
        return {
            "accuracy": (margin > 0).sum(),
            "margin": margin.sum(),
            "rewards/chosen": rewards[0].sum(),
            "rewards/rejected": rewards[1].sum(),
            "logps/chosen": chosen.logprob.sum(),
            "logps/rejected": rejected.logprob.sum(),
        }

    @property
    def needs_references(self) -> bool:
        """Whether the examples must have the reference's log-probabilities."""
        return self.pair_loss.reference and self.reference == "precomputed"

    def add_references(self, model: Model, examples: Sequence[PreferenceExample]) -> list[PreferenceExample]:
        """The examples with the log-probabilities of `model`, which is not trained yet."""
        return reference_logprobs(model, examples, pad_id=self.pad_id, share_prompts=self.share_prompts)

    def check_start(self, model: Model, examples: Sequence[PreferenceExample]) -> None:
        """Raises InputError unless the untrained model's loss is the exact one of a model that equals its reference.

        That is ln 2 for "sigmoid", "cdpo" and "robust", 1 for "hinge", 1 / (4 beta²) for "ipo"; rewards are 0.
        """
        expected = self.pair_loss.first(self.settings)
        if expected is not None:
            rewards = ("rewards/chosen", "rewards/rejected")
            check_first_loss(model, self, self.collate(examples), expected, rewards=rewards)


def check_first_loss(model: Model, objective: Any, batch: Any, expected: float, *, rewards: Sequence[str]) -> None:
    """Raises InputError if the loss of a batch differs from `expected`, or a reward from 0: the model is then not the
    reference that its examples were measured with.
    """
    with evaluating(model), torch.no_grad():
        total, weight, metrics = objective.loss(model, batch.to(model.device))
    sums = MetricSums()
    sums.add(metrics)
    means = sums.means(weight)
    loss = float(total) / weight - objective.sft_weight * means.get("sft_loss", 0.0)
    values = {"loss": loss, **{name: means[name] for name in rewards if name in means}}
    dtype = next(model.parameters()).dtype
    allowed = FIRST_TOLERANCE.get(dtype, FIRST_TOLERANCE[torch.float32]) * max(1.0, expected)
    problems = [
        f"{name}: {value:.6f}, must be {wanted:.6f} within {allowed:g}"
        for name, value in values.items()
        for wanted in [expected if name == "loss" else 0.0]
        if not abs(value - wanted) <= allowed
    ]
    if problems:
        raise InputError(
            f"Before the first step the model must equal its reference, and the loss {objective.name!r} be "
            f"{expected:.6f}. The reference log-probabilities are of another model or other tokens:",
            problems,
        )


def reference_tensor(values: Sequence[float | None]) -> Tensor:
    """Reference log-probabilities as one tensor. Raises ValueError if one is missing."""
    if any(value is None for value in values):
        raise ValueError("these examples have no reference log-probabilities; call reference_logprobs first")
    return torch.tensor(values, dtype=torch.float32)


def answer_logprobs(model: Model, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each row's labelled tokens (B,), summed, in nats; input_ids and labels are (B, T)."""
    return label_logprobs(model, model.hidden_states(input_ids), labels).sum(dim=1)


@contextmanager
def reference_mode(model: Model, *, base: bool = True) -> Iterator[None]:
    """In this context the model is its own reference: in evaluation mode, without gradients, adapters disabled.

    Without `base` the adapters stay.
    """
    disabled = adapters_disabled(model, dequantize=False) if base else nullcontext()
    with evaluating(model), torch.no_grad(), disabled:
        yield


def reference_logprobs(
    model: Model,
    examples: Sequence[PreferenceExample],
    *,
    batch_tokens: int = 16384,
    pad_id: int = 0,
    share_prompts: bool = False,
) -> list[PreferenceExample]:
    """Add the log-probabilities of the answers under `model` to the examples, once, before the model is trained.

    Adapters of the model are disabled. Batches hold pairs of similar length, at most `batch_tokens` tokens. The model's
    training mode is restored.
    """
    pairs = pair_values(model, examples, batch_tokens=batch_tokens, pad_id=pad_id, share_prompts=share_prompts)
    return [
        replace(example, reference_chosen=chosen, reference_rejected=rejected)
        for example, (chosen, rejected) in zip(examples, pairs, strict=True)
    ]


def pair_values(
    model: Model,
    examples: Sequence[PreferenceExample],
    *,
    batch_tokens: int = 16384,
    pad_id: int = 0,
    share_prompts: bool = False,
    base: bool = True,
) -> list[tuple[float, float]]:
    """The log-probabilities of both answers of each pair, without gradients. With `base` adapters are disabled."""
    values: list[tuple[float, float]] = [(0.0, 0.0)] * len(examples)
    with reference_mode(model, base=base), torch.inference_mode():
        for places in batches_of(examples, batch_tokens):
            batch = collate_pairs([examples[place] for place in places], pad_id, share=share_prompts)
            chosen, rejected = pair_logprobs(model, batch.to(model.device)).chunk(2)
            for place, each in zip(places, zip(chosen.tolist(), rejected.tolist(), strict=True), strict=True):
                values[place] = each
    return values


def logprobs_of(
    model: Model, rows: Sequence[TokenExample], batch_tokens: int, pad_id: int, *, group: int = 1
) -> list[float]:
    """The summed log-probabilities of the labelled tokens of each row under the base model, in batches by length.

    `group` neighbouring rows, such as an answer and the unrelated one, are in one batch.
    """
    groups = [RowGroup(rows[start : start + group]) for start in range(0, len(rows), group)]
    values: list[float] = [0.0] * len(rows)
    with reference_mode(model), torch.inference_mode():
        for places in batches_of(groups, batch_tokens):
            batch = pad([row for place in places for row in groups[place].rows], pad_id).to(model.device)
            result = answer_logprobs(model, batch.input_ids, batch.labels).tolist()
            for number, place in enumerate(places):
                values[group * place : group * (place + 1)] = result[group * number : group * (number + 1)]
    return values


@dataclass(frozen=True)
class RowGroup:
    """Rows that belong in one batch; its length counts their padding."""

    rows: Sequence[TokenExample]

    def __len__(self) -> int:
        return len(self.rows) * max(map(len, self.rows))
