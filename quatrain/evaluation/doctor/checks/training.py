"""One optimizer step, computed in different ways: packed, padded, and in more and smaller micro-batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quatrain.data.batches import IGNORE_INDEX, TokenBatch, TokenExample, pack, pad
from quatrain.evaluation.doctor.check import GRADIENTS, Check, DoesNotApply, Finding, difference
from quatrain.evaluation.doctor.subject import ModelUnderTest
from quatrain.training.acceleration import Compiled
from quatrain.training.distributed import ParallelStrategy
from quatrain.training.gradients import Gradients
from quatrain.training.objectives import Causal
from quatrain.training.precision import Precision
from quatrain.training.settings import TrainSettings

EXAMPLES, LONGEST = 8, 24
TOKEN_LABELS = ("causal", "masked", "token_classification", "seq2seq")
TEXT_LABELS = ("sequence_classification", "next_sentence")
REMEDY = (
    "The way a batch is cut changes what is learned. Train with accumulation = 1 and without packing until the cause "
    "is found; update PyTorch; report the model's config.json."
)


class FixedBatches:
    """A stream of fixed micro-batches."""

    def __init__(self, parts: Sequence[Any]):
        self.parts, self.index = parts, 0

    def next(self) -> Any:
        """The next micro-batch."""
        self.index += 1
        return self.parts[self.index - 1]

    def state(self) -> dict[str, Any]:
        """Its place."""
        return {"index": self.index}

    def load_state(self, state: dict[str, Any]) -> None:
        """Return to a place."""
        self.index = state["index"]


class _HeadLoss:
    """The loss of any head with labels for tokens or texts, summed over the labels: micro-batches come collated."""

    def collate(self, batch: TokenBatch) -> TokenBatch:
        """The batch itself."""
        return batch

    def loss(self, model: Any, batch: TokenBatch) -> tuple[Tensor, int, dict[str, Any]]:
        """The summed loss and the number of labels."""
        return model(labels=batch.labels, **batch.inputs)[1].sum(), batch.num_labels, {}


class _Collated(Causal):
    """Next-token prediction on micro-batches that come collated."""

    def collate(self, examples: Any) -> TokenBatch:
        """The batch itself."""
        return examples


def collated_objective(subject: ModelUnderTest) -> Any:
    """The objective of the model's head, for micro-batches that come collated."""
    return _Collated() if subject.config.head == "causal" else _HeadLoss()


def _step(subject: ModelUnderTest, parts: Sequence[TokenBatch]) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean loss of a step over these micro-batches, and the gradient of it by name, before clipping."""
    model = subject.model
    settings = TrainSettings(
        steps=1, batch_tokens=EXAMPLES * LONGEST, learning_rate=1e-3, accumulation=len(parts), max_grad_norm=0.0,
        precision="float32",
    )  # fmt: skip
    objective = collated_objective(subject)
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    trainable = [parameter for parameter in frozen if parameter.is_floating_point()]
    if not any(parameter.requires_grad for parameter in model.parameters()):
        for parameter in trainable:
            parameter.requires_grad_(True)
    gradients = Gradients(model, objective, FixedBatches(parts), settings, seed=0, parallel=ParallelStrategy())
    weights = Precision(model, torch.float32)
    gradients.start(weights, None, Compiled(model, False), lambda text: None)
    gradients.watch = None
    try:
        with torch.enable_grad():
            step = gradients.of(0)
        found = {name: master.grad.clone() for name, master in weights.masters.items() if master.grad is not None}
    finally:
        model.zero_grad(set_to_none=True)
        for parameter in frozen:
            parameter.requires_grad_(False)
    return torch.tensor(step.loss, dtype=torch.float64), found


def _gap(subject: ModelUnderTest, parts: Sequence[TokenBatch], whole: tuple[Tensor, dict[str, Tensor]]) -> float:
    """The largest difference of loss and gradients; those are compared with the largest gradient of their tensor."""
    loss, gradients = _step(subject, parts)
    if gradients.keys() != whole[1].keys():
        return math.inf
    gaps = [difference(loss, whole[0])]
    for name, expected in whole[1].items():
        scale = 1 + float(expected.abs().max()) if expected.numel() else 1.0
        gap = (gradients[name].double() - expected.double()).abs()
        gaps.append(float(torch.nan_to_num(gap, nan=math.inf).max()) / scale if gap.numel() else 0.0)
    return max(gaps)


def _limit(subject: ModelUnderTest) -> float:
    """1e-6, or more where float32 itself rounds this model's sums more."""
    return max(GRADIENTS, 4 * subject.rounding)


def _examples(subject: ModelUnderTest) -> list[TokenExample]:
    """Ragged texts with ragged masks: some have one label, or none but the last token's."""
    generator = torch.Generator().manual_seed(0)
    examples = []
    for number in range(EXAMPLES):
        source = subject.rows[number % len(subject.rows)]
        length = max(2, min(len(source), LONGEST, 3 + 3 * number))
        ids = list(source[:length])
        if subject.config.pooling == "eos" and subject.config.head == "sequence_classification":
            ids[-1] = source[-1]
        mask = (torch.rand(len(ids), generator=generator) < 0.5).tolist()
        mask[-1] = True
        examples.append(TokenExample(ids, mask))
    return examples


def labelled_batches(subject: ModelUnderTest, sizes: int) -> list[TokenBatch]:
    """The examples as micro-batches of so many."""
    examples, padding = _examples(subject), subject.config.pad_token_id or 0
    groups = [examples[start : start + sizes] for start in range(0, len(examples), sizes)]
    if subject.config.head == "causal":
        return [pad(group, padding) for group in groups]
    return [_labelled(subject, group, padding, start * sizes) for start, group in enumerate(groups)]


def _labelled(subject: ModelUnderTest, group: list[TokenExample], padding: int, first: int) -> TokenBatch:
    """A batch with labels for the head of the model: for tokens where the mask is set, or one for each text."""
    head, config = subject.config.head, subject.config
    width = max(len(example) for example in group)
    ids = torch.full((len(group), width), padding)
    segments = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE_INDEX)
    count = max(2, len(config.labels)) if head not in ("masked", "seq2seq", "causal") else config.vocab_size
    for row, example in enumerate(group):
        ids[row, : len(example)] = torch.tensor(list(example.ids))
        segments[row, : len(example)] = 1
        said = torch.tensor([token % count for token in example.ids])
        labels[row, : len(example)] = said.masked_fill(~torch.tensor(list(example.mask)), IGNORE_INDEX)
    if head in TEXT_LABELS:
        numbers = torch.arange(first, first + len(group))
        labels = numbers % count
        if config.problem_type != "single_label":  # A value, or a yes and no, for each label.
            labels = torch.stack([(numbers + label) % 3 / 2.0 for label in range(max(1, len(config.labels)))], dim=1)
            labels = labels if config.problem_type == "regression" else labels.round()
    return TokenBatch.of(ids, labels, segments=segments)


def _check_learns(subject: ModelUnderTest) -> None:
    head = subject.config.head
    if head not in (*TOKEN_LABELS, *TEXT_LABELS):
        raise DoesNotApply(f"the head {head} has no labels here")
    if subject.config.problem_type != "single_label" and not subject.config.labels:
        raise DoesNotApply("the model has no labels")
    subject.require_floats("a gradient of every weight")


def _accumulated(subject: ModelUnderTest) -> Finding:
    _check_learns(subject)
    whole = _step(subject, labelled_batches(subject, EXAMPLES))
    gaps = [_gap(subject, labelled_batches(subject, size), whole) for size in (1, 2, 4)]
    return Finding(max(gaps), f"{EXAMPLES} ragged texts as 8×1, 4×2, 2×4 and 1×8", _limit(subject))


def _packed(subject: ModelUnderTest) -> Finding:
    subject.require_decoder("packing")
    _check_learns(subject)
    if subject.model.soft_prompt is not None:
        raise DoesNotApply("texts with a soft prompt are not packed")
    examples, padding = _examples(subject), subject.config.pad_token_id or 0
    length = sum(len(example) - 1 for example in examples)
    if (subject.config.context_length or length) < LONGEST:
        raise DoesNotApply("the context of the model is too short for a row of several texts")
    whole = _step(subject, [pad([example], padding, multiple=1) for example in examples])
    gap = _gap(subject, [pack(examples, length, padding)], whole)
    return Finding(gap, f"{EXAMPLES} texts in one row of {length} tokens, and one in each row", _limit(subject))


CHECKS = (
    Check("packing", "packed and unpacked texts: loss and gradients", "gradients", GRADIENTS, REMEDY, _packed),
    Check(
        "accumulation", "accumulation 8×1, 4×2, 1×8 with ragged masks: loss and gradients", "gradients", GRADIENTS,
        REMEDY, _accumulated,
    ),
)  # fmt: skip
