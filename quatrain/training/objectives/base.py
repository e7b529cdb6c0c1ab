"""The objective protocol, next-token prediction, seeded randomness, and checks shared by all objectives.

`Objective.loss` returns an undivided sum and its weight. The trainer adds both over micro-batches and processes and
divides once, so that accumulation and data parallelism do not change the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.core.wording import format_names
from quatrain.data.batches import IGNORE_INDEX, Batch, TokenBatch, TokenExample, pad
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.stack import Model
from quatrain.training.chunked_loss import summed_language_loss
from quatrain.training.objectives.metrics import Metric
from quatrain.training.objectives.routing import RoutingLosses
from quatrain.training.sampled_loss import SampledSoftmax

Loss = tuple[Tensor, int, Mapping[str, Metric]]
"""The summed loss, the weight to divide it by, and metrics that are summed and divided in the same way; a `PartMean`
among them has a weight of its own."""

Seeds = int | Sequence[int | Sequence[int]]
"""Seeds of a batch: one for the whole batch, or one per example, each an integer or a tuple such as
(seed, epoch, index)."""


class Objective(Protocol):
    """What the trainer needs of an objective.

    An objective with random draws sets `draws = True` and accepts `collate(examples, seed=…)`; see `collate` in this
    module. With `steps_by_sum = True` the optimizer steps by the gradient of the summed loss, not of its mean: each
    example counts as a step of its own. Evaluation also reads, if present, `likelihood`, `references`, `predict`,
    `predictions` and `evaluation_metrics`; see `TextObjective`.
    """

    def collate(self, examples: Sequence[Any]) -> Batch:
        """Turn examples into one micro-batch."""
        ...

    def loss(self, model: Any, batch: Any) -> Loss:
        """Return the summed loss, the weight to divide it by, and metrics summed in the same way."""
        ...


class Causal:
    """Next-token prediction on the labelled tokens: all of a text, or the assistant's turns of a chat.

    With a `sampler` the training loss is a sampled softmax.
    """

    likelihood = "loss"
    sampler: SampledSoftmax | None = None

    def __init__(self, pad_id: int = 0, *, multiple: int = 8):
        self.pad_id, self.multiple = pad_id, multiple

    def collate(self, examples: Sequence[TokenExample] | TokenBatch) -> TokenBatch:
        """Pad examples to a batch. A `TokenBatch`, as window streams yield, is returned unchanged."""
        return examples if isinstance(examples, TokenBatch) else pad(examples, self.pad_id, multiple=self.multiple)

    def loss(self, model: Model, batch: TokenBatch) -> Loss:
        """Cross-entropy in nats, summed over the labelled tokens; the weight is their number.

        In training the losses of a mixture of experts are added (`quatrain.training.objectives.routing`).
        """
        routing = RoutingLosses(model)
        hidden = model.hidden_states(**batch.inputs, **routing.arguments)
        added, metrics = routing.added(batch.num_labels)
        return self.summed(model, hidden, batch.labels) + added, batch.num_labels, metrics

    def summed(self, model: Any, hidden: Tensor, labels: Tensor) -> Tensor:
        """The summed loss of labels (B, T) from hidden states (B, T, C)."""
        if self.sampler is not None and model.training:
            return self.sampler.loss(model, hidden, labels)
        return summed_language_loss(model, hidden, labels)


class CarriedCausal(Causal):
    """Next-token prediction in a text that goes on from batch to batch, for a model that carries a state (`carried`).

    Gradients end where a batch begins: truncated back-propagation through time.
    """

    def loss(self, model: Any, batch: Any) -> Loss:
        network, carry = getattr(model, "module", model), getattr(batch, "carry", None)
        if carry is None:  # An example of its own, as evaluation has them.
            return super().loss(model, batch)
        state = carry.state
        if state is not None:
            state = [tuple(part.to(batch.input_ids.device) for part in layer) for layer in state]
        hidden, after = network.carried(batch.input_ids, state)
        if network.training:
            carry.state = [tuple(part.detach() for part in layer) for layer in after]
        return self.summed(network, hidden, batch.labels), batch.num_labels, {}


def collate(objective: Objective, examples: Any, seed: Seeds) -> Any:
    """Collate with `seed` if the objective draws at random. The same seed gives the same batch."""
    if getattr(objective, "draws", False):
        return objective.collate(examples, seed=seed)  # type: ignore[call-arg]
    return objective.collate(examples)


def generators(seed: Seeds, count: int) -> list[np.random.Generator]:
    """One independent generator per example.

    Raises InputError if there are not exactly `count` seeds, or a seed is negative.
    """
    seeds: list[Any] = [(seed, row) for row in range(count)] if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise InputError(f"seed: {len(seeds)} seeds for {count} examples; give one number, or one per example.")
    try:
        return [np.random.default_rng(each) for each in seeds]
    except (TypeError, ValueError) as error:
        raise InputError(f"seed: {seed!r}; must be made of whole numbers of at least 0.") from error


def config_of(model: Any) -> ModelConfig:
    """The configuration of a model, including a model wrapped by DDP."""
    return getattr(model, "module", model).config


def check_head(model: Any, *heads: str, labels: Sequence[str] | None = None) -> ModelConfig:
    """Return the model's configuration. Raises InputError if its head or its label names differ from these."""
    config = config_of(model)
    if config.head not in heads:
        expected = " or ".join(heads)
        raise InputError(
            f"head: {config.head}; this objective trains {expected}. Load the model with head={heads[0]!r}."
        )
    if labels is not None and tuple(labels) != config.labels:
        raise InputError(
            f"labels: the model has {format_names(config.labels, 6) or 'none'}, "
            f"the objective {format_names(labels, 6)}. "
            "Load the model with the labels of the objective, in the same order."
        )
    return config


def inputs_of(model: Any, batch: TokenBatch) -> dict[str, Any]:
    """The batch's inputs that the model accepts: token types are dropped for a model without them."""
    inputs = dict(batch.inputs)
    if config_of(model).type_vocab_size < 2:
        inputs.pop("token_types", None)
    return inputs


def forward(model: Any, batch: TokenBatch, labels: Any = None) -> tuple[Any, Any]:
    """The model's logits and, with `labels`, its unreduced loss."""
    return model(labels=labels, **inputs_of(model, batch))


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the labels (…) have the highest of their logits (…, L); labels of -100 do not count."""
    labelled = labels != IGNORE_INDEX
    return (logits.detach()[labelled].argmax(-1) == labels[labelled]).sum()


def check_number(
    name: str, value: Any, least: float = 0, most: float = math.inf, *, above: bool = False, integer: bool = False
) -> list[str]:
    """The problem of a setting that is not a number from `least` to `most`; an empty list if it is.

    `above` excludes `least` itself; `integer` accepts integers only.
    """
    right_type = isinstance(value, int if integer else int | float) and not isinstance(value, bool)
    if right_type and (least < value if above else least <= value) and value <= most:
        return []
    limits = f"{'above' if above else 'at least'} {least:g}" + (f" and at most {most:g}" if most < math.inf else "")
    return [f"{name}: {value!r}; must be {f'a whole number of {limits}' if integer else limits}"]


def labels_tensor(rows: Sequence[Any], *, floating: bool = False) -> Tensor:
    """The labels of all texts as one tensor of integers, or of float32."""
    return torch.tensor(list(rows), dtype=torch.float32 if floating else torch.long)
