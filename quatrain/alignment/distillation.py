"""On-policy distillation: a model learns a stronger model's distributions on its own completions.

The student samples, and at each token of its completions it is moved to the teacher's distribution (GKD, Agarwal et al.
2024, arXiv 2306.13649; MiniLLM, Gu et al. 2024, arXiv 2306.08543). Every token teaches, not one reward per completion,
and the student meets the mistakes that it makes itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quatrain.alignment.policy import completion_states, policy_of
from quatrain.alignment.rollouts import PolicyObjective, Rollout, RolloutBatch
from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.transformer.stack import Model
from quatrain.training.chunked_loss import chunked, logit_slices

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

        def part(states: Tensor, expert: Tensor) -> Tensor:
            student = module.lm_logits(states) / self.temperature
            with torch.no_grad():
                teacher = self.teacher.lm_logits(expert) / self.temperature
            return divergence(student, teacher, self.kind, self.mixture)

        vocabulary = module.config.vocab_size
        if chunked(labels.numel() * vocabulary):
            slices = logit_slices(len(labels), vocabulary, states.device)
            parts = [checkpoint(part, states[rows], expert[rows], use_reentrant=False) for rows in slices]
            values = torch.cat(parts)
        else:
            values = part(states, expert)
        return values.sum(), len(labels), {}

    def check_start(self, module: Any, batch: RolloutBatch) -> None:
        """Check that both models have the same vocabulary; the loss has no ratio. Raises InputError."""
        sizes = self.teacher.config.vocab_size, policy_of(module).config.vocab_size
        if sizes[0] != sizes[1]:
            raise InputError(
                f"The teacher's vocabulary has {sizes[0]:,} tokens, the student's {sizes[1]:,}; both must have the "
                "same tokenizer."
            )
