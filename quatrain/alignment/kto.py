"""Kahneman-Tversky optimization (KTO, Ethayarajh et al. 2024, arXiv 2402.01306): learns from single rated answers.

An answer is desirable (thumbs up) or not; no pairs are needed. The loss of an answer with gain r (its log-ratio of
policy and reference) is

    desirable_weight   * (1 - sigmoid(beta * (r - z)))    if it is desirable,
    undesirable_weight * (1 - sigmoid(beta * (z - r)))    otherwise.

z estimates the policy's divergence KL(policy || reference) as the mean gain of answers to other prompts, at least 0 and
without a gradient. As in the paper, it is the mean over one micro-batch: the one quantity here that depends on how a
step is divided. Each example carries its answer to another prompt, so that its reference is computed once, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from quatrain.alignment.dpo import (
    PreferenceExample,
    answer_logprobs,
    answer_row,
    check_first_loss,
    logprobs_of,
    reference_mode,
    reference_tensor,
)
from quatrain.core.errors import InputError
from quatrain.data.batches import TokenBatch, TokenExample, pad
from quatrain.models.transformer.stack import Model
from quatrain.training.objectives.metrics import Metric, PartMean


@dataclass(frozen=True)
class RatedExample:
    """A prompt with one rated answer as token ids; `unrelated` is an answer to another prompt, for the KL estimate.

    The references are log-probabilities (nats, summed over tokens) of `answer` and `unrelated` after `prompt` under the
    reference model.
    """

    prompt: Sequence[int]
    answer: Sequence[int]
    desirable: bool
    unrelated: Sequence[int] = ()
    reference: float | None = None
    reference_unrelated: float | None = None

    def __len__(self) -> int:
        """Tokens of the two rows of the example, padding included."""
        return 2 * (len(self.prompt) + max(len(self.answer), len(self.unrelated)))

    def rows(self) -> tuple[TokenExample, TokenExample]:
        """The prompt with its answer, and with the unrelated one, with the tokens of the answers marked as learned."""
        return answer_row(self.prompt, self.answer), answer_row(self.prompt, self.unrelated)


def unpaired(examples: Sequence[PreferenceExample | RatedExample]) -> list[RatedExample]:
    """Pairs as two rated answers each; rated answers as they are."""
    rated = []
    for each in examples:
        if isinstance(each, PreferenceExample):
            rated += [RatedExample(each.prompt, each.chosen, True), RatedExample(each.prompt, each.rejected, False)]
        else:
            rated.append(each)
    return rated


def with_unrelated(examples: Sequence[RatedExample]) -> list[RatedExample]:
    """The examples, each with the answer of the nearest earlier example that has another prompt (cyclically).

    Raises InputError if all prompts are the same: the KL estimate needs an answer to another prompt.
    """
    prompts = [tuple(example.prompt) for example in examples]
    if len(set(prompts)) < 2:
        raise InputError("KTO needs at least two different prompts: its KL term pairs a prompt with another's answer.")
    result, other = [], len(examples) - 1
    while prompts[other] == prompts[0]:
        other -= 1
    for number, example in enumerate(examples):
        if prompts[number - 1] != prompts[number]:
            other = (number - 1) % len(examples)
        result.append(replace(example, unrelated=examples[other].answer))
    return result


@dataclass(frozen=True)
class RatedBatch(TokenBatch):
    """B rated answers: `input_ids` and `labels` (B, T), `desirable` (B) and the unrelated answers' (B, S).

    `references` (2, B): log-probabilities of the answers and of the unrelated ones; None if the model gives them.
    """

    desirable: Tensor = field(kw_only=True)
    unrelated_ids: Tensor = field(kw_only=True)
    unrelated_labels: Tensor = field(kw_only=True)
    references: Tensor | None = field(kw_only=True, default=None)


class KTO:
    """The KTO loss of rated answers; see the module.

    The paper advises desirable_weight * desirable answers to be 1 to 4/3 times undesirable_weight * undesirable ones;
    `balanced_weights` gives such weights. `reference` as in `DPO`. Raises InputError for values out of range.
    """

    name = "kto"
    sft_weight = 0.0

    def __init__(
        self,
        *,
        beta: float = 0.1,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        reference: str = "precomputed",
        pad_id: int = 0,
    ):
        weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
        problems = [f"{name}: {value}; must be at least 0" for name, value in weights.items() if not value >= 0]
        if not beta > 0:
            problems.append(f"beta: {beta}; must be above 0")
        if reference not in ("precomputed", "base"):
            problems.append(f'reference: {reference!r}; must be "precomputed" or "base"')
        if problems:
            raise InputError("KTO cannot be set up:", problems)
        self.beta, self.reference, self.pad_id = beta, reference, pad_id
        self.desirable_weight, self.undesirable_weight = desirable_weight, undesirable_weight

    def collate(self, examples: Sequence[RatedExample]) -> RatedBatch:
        """Turn B examples into a batch. Raises ValueError for examples without an unrelated answer or references."""
        if not all(len(example.unrelated) for example in examples):
            raise ValueError("these examples have no unrelated answers; call with_unrelated first")
        rows = [example.rows() for example in examples]
        answers, unrelated = (pad(list(each), self.pad_id) for each in zip(*rows, strict=True))
        references = None
        if self.reference == "precomputed":
            values = [(example.reference, example.reference_unrelated) for example in examples]
            references = torch.stack([reference_tensor(each) for each in zip(*values, strict=True)])
        return RatedBatch.of(
            answers.input_ids,
            answers.labels,
            desirable=torch.tensor([example.desirable for example in examples]),
            unrelated_ids=unrelated.input_ids,
            unrelated_labels=unrelated.labels,
            references=references,
        )

    def loss(self, model: Model, batch: RatedBatch) -> tuple[Tensor, int, dict[str, Metric]]:
        """The loss summed over answers, their number, and metrics.

        `chosen` are the desirable answers and `rejected` the others: their metrics are means over these alone.
        `desirable` is the share of desirable answers. `kl` is the estimate z. `accuracy` is the share of answers on the
        right side of it.
        """
        logprobs = answer_logprobs(model, batch.input_ids, batch.labels)
        with torch.no_grad():
            unrelated = answer_logprobs(model, batch.unrelated_ids, batch.unrelated_labels)
        references = batch.references
        if references is None:
            with reference_mode(model):
                own = answer_logprobs(model, batch.input_ids, batch.labels)
                references = torch.stack((own, answer_logprobs(model, batch.unrelated_ids, batch.unrelated_labels)))
        divergence = (unrelated - references[1]).mean().clamp(min=0)
        gain = logprobs - references[0]
        good = batch.desirable
        distance = torch.where(good, gain - divergence, divergence - gain)
        weight = torch.where(good, self.desirable_weight, self.undesirable_weight)
        losses = weight * (1 - torch.sigmoid(self.beta * distance))
        count, parts = len(losses), {"chosen": good, "rejected": ~good}
        metrics: dict[str, Metric] = {
            "accuracy": (distance > 0).sum(),
            "kl": divergence * count,
            "desirable": good.sum(),
        }
        for name, values in (("rewards", (self.beta * gain).detach()), ("logps", logprobs.detach())):
            metrics |= {f"{name}/{part}": PartMean(values[rows].sum(), rows.sum()) for part, rows in parts.items()}
        return losses.sum(), count, metrics

    @property
    def needs_references(self) -> bool:
        """Whether the examples must have the reference's log-probabilities."""
        return self.reference == "precomputed"

    def add_references(self, model: Model, examples: Sequence[RatedExample]) -> list[RatedExample]:
        """The examples with the log-probabilities of `model`, which is not trained yet."""
        return rated_references(model, examples, pad_id=self.pad_id)

    def check_start(self, model: Model, examples: Sequence[RatedExample]) -> None:
        """Raises InputError unless the untrained model's loss is half the mean weight, and its rewards and KL are 0."""
        good = sum(example.desirable for example in examples)
        bad = len(examples) - good
        expected = (self.desirable_weight * good + self.undesirable_weight * bad) / (2 * len(examples))
        names = ("rewards/chosen", "rewards/rejected", "kl")
        check_first_loss(model, self, self.collate(examples), expected, rewards=names)


def balanced_weights(desirable: int, undesirable: int) -> tuple[float, float]:
    """Weights of desirable and undesirable answers, the larger one of them above 1, so that both count alike."""
    if not desirable or not undesirable:
        return 1.0, 1.0
    return max(1.0, undesirable / desirable), max(1.0, desirable / undesirable)


def rated_references(
    model: Model, examples: Sequence[RatedExample], *, batch_tokens: int = 16384, pad_id: int = 0
) -> list[RatedExample]:
    """The examples with the references of their answers under `model`, as `dpo.reference_logprobs`."""
    values = logprobs_of(model, [row for example in examples for row in example.rows()], batch_tokens, pad_id, group=2)
    return [
        replace(example, reference=values[2 * number], reference_unrelated=values[2 * number + 1])
        for number, example in enumerate(examples)
    ]
