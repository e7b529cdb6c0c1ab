"""Distillation: a model learns a stronger model's distributions, on texts or on its own completions.

On texts (`TextDistillation`), the teacher's distribution of each next token is the label, and its hidden states and
attention may be compared too. On-policy (`OnPolicyDistillation`), the student samples, and at each token of its
completions it is moved to the teacher's distribution (GKD, Agarwal et al. 2024, arXiv 2306.13649; MiniLLM, Gu et al.
2024, arXiv 2306.08543). Every token teaches, not one reward per completion, and the student meets its own mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from quatrain.alignment.policy import completion_states, policy_of
from quatrain.alignment.rollouts import PolicyObjective, Rollout, RolloutBatch
from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.data.batches import IGNORE_INDEX, TokenBatch
from quatrain.models.transformer.stack import Model, Trace
from quatrain.training.chunked_loss import chunked, logit_slices
from quatrain.training.objectives.base import Causal, Loss

Divergence = Literal["reverse", "forward", "js"]

IMPOSSIBLE = -1e30
"""The log-probability that stands for -inf in sums."""


def divergence(student: Tensor, teacher: Tensor, kind: Divergence = "reverse", mixture: float = 0.5) -> Tensor:
    """The divergence (M,) in nats of distributions with the logits (M, V), in float32.

    `reverse` is KL(student || teacher), which seeks one of the teacher's modes; `forward` is KL(teacher || student),
    which covers all of them; `js` is b KL(teacher || m) + (1 - b) KL(student || m) with m = b teacher + (1 - b) student
    and b = `mixture`. A token that is impossible under both adds nothing.
    """
    first, second = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    if kind == "reverse":
        return _kl(first, second)
    if kind == "forward":
        return _kl(second, first)
    b = torch.tensor(mixture, device=first.device)
    # Not -inf twice, whose sum has the gradient NaN.
    mixed = torch.logaddexp(first.clamp(min=IMPOSSIBLE) + torch.log1p(-b), second.clamp(min=IMPOSSIBLE) + torch.log(b))
    return b * _kl(second, mixed) + (1 - b) * _kl(first, mixed)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities (M, V); tokens without probability under p add nothing."""
    possible = log_p > float("-inf")
    difference = torch.where(possible, log_p, 0.0) - torch.where(possible, log_q, 0.0)
    return (log_p.exp() * difference).sum(-1)


def divergences(
    student: tuple[Any, Tensor],
    teacher: tuple[Model, Tensor],
    kind: Divergence,
    *,
    mixture: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """The divergence (M,) of two models' next tokens, each a model with its hidden states (M, C).

    Logits are divided by the temperature. Many of them are computed in slices that the backward pass computes again.
    """
    (module, states), (expert_model, expert) = student, teacher

    def part(states: Tensor, expert: Tensor) -> Tensor:
        logits = module.lm_logits(states) / temperature
        with torch.no_grad():
            expected = expert_model.lm_logits(expert) / temperature
        return divergence(logits, expected, kind, mixture)

    vocabulary = module.config.vocab_size
    if not chunked(len(states) * vocabulary):
        return part(states, expert)
    slices = logit_slices(len(states), vocabulary, states.device)
    return torch.cat([checkpoint(part, states[rows], expert[rows], use_reentrant=False) for rows in slices])


class TextDistillation(Causal):
    """Next-token prediction of a text under a teacher (Hinton et al. 2015, arXiv 1503.02531).

    The loss is `weight` T² D + (1 - weight) CE, where D is the divergence of the tokens' distributions at temperature T
    and CE the cross-entropy of the text; plus `hidden` times the mean of 1 - cosine of the hidden states (DistilBERT,
    Sanh et al. 2019, arXiv 1910.01108), and `attention` times the squared error of the attention weights, summed over
    keys and averaged over heads (TinyBERT, Jiao et al. 2019, arXiv 1909.10351). Layer i of n compares with layer
    i N / n of the teacher's N. The teacher must have the student's vocabulary. Raises InputError.
    """

    def __init__(
        self,
        teacher: Model,
        pad_id: int = 0,
        *,
        kind: Divergence = "forward",
        mixture: float = 0.5,
        temperature: float = 1.0,
        weight: float = 0.5,
        hidden: float = 0.0,
        attention: float = 0.0,
    ):
        super().__init__(pad_id)
        if kind not in get_args(Divergence):
            raise InputError(f"divergence: {format_value(kind)}; must be one of {', '.join(get_args(Divergence))}")
        self.teacher = teacher.requires_grad_(False).eval()
        self.kind, self.mixture, self.temperature, self.weight = kind, mixture, temperature, weight
        self.hidden, self.attention = hidden, attention

    def loss(self, model: Any, batch: TokenBatch) -> Loss:
        """The loss in nats, summed over the labelled tokens; the weight is their number.

        Metrics: `divergence` at the temperature, `cross_entropy`, and `hidden` and `attention` where they are used.
        """
        module, mask = getattr(model, "module", model), batch.labels != IGNORE_INDEX
        if not module.training:
            return super().loss(model, batch)
        self._check(module)
        self.teacher.to(device=batch.input_ids.device)
        traces = (Trace(), Trace()) if self.hidden or self.attention else (None, None)
        states = module.hidden_states(**batch.inputs, trace=traces[0])
        with torch.no_grad():
            expert = self.teacher.hidden_states(**batch.inputs, trace=traces[1])
        apart = divergences(
            (module, states[mask]),
            (self.teacher, expert[mask]),
            self.kind,
            mixture=self.mixture,
            temperature=self.temperature,
        ).sum()
        plain = self.summed(module, states, batch.labels)
        total = self.weight * self.temperature**2 * apart + (1 - self.weight) * plain
        metrics: dict[str, Any] = {"divergence": apart.detach(), "cross_entropy": plain.detach()}
        if traces[0] is not None and traces[1] is not None:
            for name, share, value in self._inner(traces[0], traces[1], mask):
                total = total + share * value
                metrics[name] = value.detach()
        return total, batch.num_labels, metrics

    def _inner(self, own: Trace, other: Trace, mask: Tensor) -> Iterator[tuple[str, float, Tensor]]:
        """The losses of hidden states and attention weights, summed over the labelled tokens."""
        layers = len(own.hidden_states) - 1, len(other.hidden_states) - 1
        pairs = [(layer, round(layer * layers[1] / layers[0])) for layer in range(1, layers[0] + 1)]
        if self.hidden:
            apart = [
                1
                - F.cosine_similarity(own.hidden_states[a][mask].float(), other.hidden_states[b][mask].float(), dim=-1)
                for a, b in pairs
            ]
            yield "hidden", self.hidden, torch.stack(apart).mean(0).sum()
        if self.attention:
            squared = []
            for a, b in pairs:
                weights = own.attentions[a - 1], other.attentions[b - 1]
                if weights[0].shape[1] != weights[1].shape[1]:  # Another number of heads: their means are compared.
                    weights = weights[0].mean(1, keepdim=True), weights[1].mean(1, keepdim=True)
                squared.append((weights[0] - weights[1]).square().sum(-1).mean(1)[mask])
            yield "attention", self.attention, torch.stack(squared).mean(0).sum()

    def _check(self, module: Any) -> None:
        """Raises InputError for a teacher whose distributions or states cannot be compared."""
        own, other = module.config, self.teacher.config
        problems = []
        if own.vocab_size != other.vocab_size:
            problems.append(
                f"vocabulary: the teacher's has {other.vocab_size:,} tokens, the student's {own.vocab_size:,}"
            )
        if self.hidden and own.hidden_size != other.hidden_size:
            problems.append(
                f"hidden: the teacher's states have {other.hidden_size} channels, the student's {own.hidden_size}; "
                "leave it out, or take a student of the same width (a prune stage removes layers)"
            )
        if problems:
            raise InputError("The student cannot learn from this teacher:", problems)


class OnPolicyDistillation(PolicyObjective):
    """The mean divergence from a teacher over the tokens of the student's own completions.

    The teacher is frozen and must have the student's vocabulary. Rewards take no part in the loss; they are measured.
    Raises InputError for values out of range.
    """

    def __init__(
        self,
        teacher: Model,
        *,
        kind: Divergence = "reverse",
        mixture: float = 0.5,
        temperature: float = 1.0,
        pad_id: int = 0,
    ):
        super().__init__(temperature=temperature, pad_id=pad_id)
        problems = []
        if kind not in get_args(Divergence):
            problems.append(f"divergence: {format_value(kind)}; must be one of {', '.join(get_args(Divergence))}")
        if not 0 < mixture < 1:
            problems.append(f"mixture: {mixture}; must be above 0 and below 1")
        if problems:
            raise InputError("On-policy distillation cannot be set up:", problems)
        self.teacher = teacher.requires_grad_(False).eval()
        self.kind, self.mixture = kind, mixture

    def advantages(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Every completion teaches, also those that no reward could judge."""
        for rollout in rollouts:
            rollout.learned = True
        return {}

    def loss(self, module: Any, batch: RolloutBatch) -> tuple[Tensor, int | Tensor, dict[str, float | Tensor]]:
        """The divergence in nats, summed over the completions' tokens; the weight is their number."""
        states, labels, mask = completion_states(module, batch)
        self.teacher.to(device=states.device)
        with torch.no_grad():
            expert = self.teacher.hidden_states(**batch.inputs)[mask]
        values = divergences(
            (module, states), (self.teacher, expert), self.kind, mixture=self.mixture, temperature=self.temperature
        )
        return values.sum(), len(labels), {}

    def check_start(self, module: Any, batch: RolloutBatch) -> None:
        """Check that both models have the same vocabulary; the loss has no ratio. Raises InputError."""
        sizes = self.teacher.config.vocab_size, policy_of(module).config.vocab_size
        if sizes[0] != sizes[1]:
            raise InputError(
                f"The teacher's vocabulary has {sizes[0]:,} tokens, the student's {sizes[1]:,}; both must have the "
                "same tokenizer."
            )
