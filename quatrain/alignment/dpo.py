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
from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE_INDEX, TokenBatch, TokenExample, pad
from quatrain.models.transformer.stack import Model
from quatrain.training.chunked_loss import language_losses
from quatrain.training.objectives import Objective

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
    """B pairs as 2 B rows: `input_ids` and `labels` (2B, T), chosen rows first; `reference` (2B,) log-probabilities.

    `reference` is None if the model itself gives it. Rows are padded on the right: attention is causal and padding has
    no label, so no mask is needed.
    """

    reference: Tensor | None = field(kw_only=True, default=None)


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
    adapters disabled, computed at each step; "precomputed" ones are in the examples. Raises InputError, with all
    problems, for an unknown loss, settings that the loss does not read, and values out of range.
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

    @property
    def beta(self) -> float:
        """The factor of the rewards."""
        return self.settings.beta

    def collate(self, examples: Sequence[PreferenceExample]) -> PreferenceBatch:
        """Turn B pairs into 2 B rows. Raises ValueError for examples that lack the log-probabilities they need."""
        pairs = [example.rows() for example in examples]
        batch = pad([chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs], self.pad_id)
        references = [e.reference_chosen for e in examples] + [e.reference_rejected for e in examples]
        return PreferenceBatch.of(batch.input_ids, batch.labels, reference=self._references(references))

    def _references(self, values: Sequence[float | None]) -> Tensor | None:
        if not self.pair_loss.reference:
            return torch.zeros(len(values))
        if self.reference == "base":
            return None
        return reference_tensor(values)

    def loss(self, model: Model, batch: PreferenceBatch) -> tuple[Tensor, int, dict[str, float | Tensor]]:
        """The loss summed over pairs, their number, and sums of accuracy, margin, rewards and log-probabilities.

        The reward of an answer is beta times its gain over the reference, or times its log-probability without one; of
        losses that compare answers per token it is per token.
        """
        logprobs = answer_logprobs(model, batch.input_ids, batch.labels)
        reference = batch.reference
        if reference is None:
            with reference_mode(model):
                reference = answer_logprobs(model, batch.input_ids, batch.labels)
        lengths = (batch.labels != IGNORE_INDEX).sum(dim=1)
        parts = (values.chunk(2) for values in (logprobs, reference, lengths))
        chosen, rejected = (Answers(*each) for each in zip(*parts, strict=True))
        losses = self.pair_loss.compute(chosen, rejected, self.settings)
        metrics: dict[str, float | Tensor] = {}
        weight = 1.0 if self.pair_loss.likelihood else self.sft_weight
        if weight:
            likelihood = -chosen.mean_logprob
            losses = losses + weight * likelihood
            metrics["sft_loss"] = likelihood.sum().detach()
        return losses.sum(), len(losses), metrics | self._metrics(chosen, rejected)

    @torch.no_grad()
    def _metrics(self, chosen: Answers, rejected: Answers) -> dict[str, float | Tensor]:
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
        return reference_logprobs(model, examples, pad_id=self.pad_id)

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
    was_training = model.training
    model.eval()
    with torch.no_grad():
        total, weight, metrics = objective.loss(model, batch.to(model.device))
    model.train(was_training)
    likelihood = objective.sft_weight * float(metrics.get("sft_loss", 0.0))
    values = {"loss": (float(total) - likelihood) / weight, **{name: float(metrics[name]) / weight for name in rewards}}
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
    return -language_losses(model, model.hidden_states(input_ids), labels).sum(dim=1)


@contextmanager
def reference_mode(model: Model, *, base: bool = True) -> Iterator[None]:
    """In this context the model is its own reference: in evaluation mode, without gradients, adapters disabled.

    Without `base` the adapters stay.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), adapters_disabled(model, dequantize=False) if base else nullcontext():
            yield
    finally:
        model.train(was_training)


def reference_logprobs(
    model: Model,
    examples: Sequence[PreferenceExample],
    *,
    batch_tokens: int = 16384,
    pad_id: int = 0,
) -> list[PreferenceExample]:
    """Add the log-probabilities of the answers under `model` to the examples, once, before the model is trained.

    Adapters of the model are disabled. Batches hold pairs of similar length, at most `batch_tokens` tokens. The model's
    training mode is restored.
    """
    values = logprobs_of(model, [row for example in examples for row in example.rows()], batch_tokens, pad_id, group=2)
    return [
        replace(example, reference_chosen=values[2 * number], reference_rejected=values[2 * number + 1])
        for number, example in enumerate(examples)
    ]


def logprobs_of(
    model: Model, rows: Sequence[TokenExample], batch_tokens: int, pad_id: int, *, group: int = 1, base: bool = True
) -> list[float]:
    """The summed log-probabilities of the labelled tokens of each row, in batches by length, without gradients.

    `group` neighbouring rows, such as the two of a pair, are in one batch. With `base` adapters are disabled.
    """
    groups = [rows[start : start + group] for start in range(0, len(rows), group)]
    lengths = [group * max(map(len, each)) for each in groups]
    order = sorted(range(len(groups)), key=lengths.__getitem__)
    values: list[float] = [0.0] * len(rows)
    with reference_mode(model, base=base), torch.inference_mode():
        while order:
            chunk = [order.pop() for _ in range(min(len(order), max(1, batch_tokens // lengths[order[-1]])))]
            batch = pad([row for index in chunk for row in groups[index]], pad_id).to(model.device)
            result = answer_logprobs(model, batch.input_ids, batch.labels).tolist()
            for place, index in enumerate(chunk):
                values[group * index : group * (index + 1)] = result[group * place : group * (place + 1)]
    return values
