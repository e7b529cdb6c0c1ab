"""What every objective shares: the protocol, next-token prediction, owned randomness, and checks of the model.

`loss` returns the sum and the weight; the trainer divides once, over micro-batches and processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.data.batches import IGNORE, Batch, TokenBatch, TokenExample, pad
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.stack import Model
from quatrain.training.chunked_loss import summed_language_loss

Loss = tuple[Tensor, int, dict[str, float | Tensor]]
"""The sum of a loss, what it is to be divided by, and metrics that are summed and divided in the same way."""

Seeds = int | Sequence[int | Sequence[int]]
"""Of a batch: one number for all of it, or for each example its own, a number or several such as (seed, epoch,
index).
"""


class Objective(Protocol):
    """What the trainer asks of an objective.

    One that draws at random says `draws = True` and takes `collate(examples, seed=…)`: see `collate` of this module.
    """

    def collate(self, examples: Sequence[Any]) -> Batch:
        """The batch of one micro-step."""
        ...

    def loss(self, model: Any, batch: Any) -> Loss:
        """The sum of the loss, its weight (what it is to be divided by), and metrics summed the same way."""
        ...


class Causal:
    """Next-token prediction on the tokens that are learned: all of a text, or the assistant's part of a chat."""

    def __init__(self, pad_id: int = 0, *, multiple: int = 8):
        self.pad_id, self.multiple = pad_id, multiple

    def collate(self, examples: Sequence[TokenExample] | TokenBatch) -> TokenBatch:
        """Examples become a padded batch; a stream of windows brings its batch ready-made."""
        return examples if isinstance(examples, TokenBatch) else pad(examples, self.pad_id, multiple=self.multiple)

    def loss(self, model: Model, batch: TokenBatch) -> Loss:
        """Cross-entropy in nats, summed over the learned tokens; the weight is their number."""
        hidden = model.hidden_states(**batch.inputs)
        return summed_language_loss(model, hidden, batch.labels), batch.num_labels, {}


def collate(objective: Objective, examples: Any, seed: Seeds) -> Any:
    """The batch of an objective, which gets the seed if it draws at random: the same seed gives the same batch."""
    if getattr(objective, "draws", False):
        return objective.collate(examples, seed=seed)  # type: ignore[call-arg]
    return objective.collate(examples)


def generators(seed: Seeds, count: int) -> list[np.random.Generator]:
    """A generator for each of `count` examples, which owes nothing to the others'.

    Raises InputError for another number of seeds than examples, or negative ones.
    """
    own: list[Any] = [(seed, row) for row in range(count)] if isinstance(seed, int) else list(seed)
    if len(own) != count:
        raise InputError(f"seed: {len(own)} of them for {count} examples; give one number, or one for each example.")
    try:
        return [np.random.default_rng(each) for each in own]
    except (TypeError, ValueError) as error:
        raise InputError(f"seed: {seed!r}; must be made of whole numbers of at least 0.") from error


def config_of(model: Any) -> ModelConfig:
    """The configuration of a model, also of one that a library for several processes has wrapped."""
    return getattr(model, "module", model).config


def check_head(model: Any, *heads: str, labels: Sequence[str] | None = None) -> ModelConfig:
    """The model's configuration. Raises InputError where its head, or the names of its labels, are not the
    objective's.
    """
    config = config_of(model)
    if config.head not in heads:
        wanted = " or ".join(heads)
        raise InputError(f"head: {config.head}; this objective trains {wanted}. Load the model with head={heads[0]!r}.")
    if labels is not None and tuple(labels) != config.labels:
        raise InputError(
            f"labels: the model tells apart {_some(config.labels)}, the objective {_some(labels)}. "
            "Load the model with labels= those of the objective, in the same order."
        )
    return config


def call(model: Any, batch: TokenBatch, labels: Any = None) -> tuple[Any, Any]:
    """The model's logits and loss of a batch; token types stay away from a model that has none."""
    inputs = dict(batch.inputs)
    if config_of(model).type_vocab_size < 2:
        inputs.pop("token_types", None)
    return model(labels=labels, **inputs)


def learned_accuracy(logits: Tensor | None, labels: Tensor) -> dict[str, float | Tensor]:
    """How many of the labels (…) that count are the likeliest of the logits (…, L); nothing where there are no
    logits.
    """
    if logits is None:
        return {}
    learned = labels != IGNORE
    return {"accuracy": (logits.detach()[learned].argmax(-1) == labels[learned]).sum()}


def whole_number(name: str, value: Any, least: int = 1) -> list[str]:
    """The problem of a setting that is no whole number of at least `least`; none where it is."""
    fine = isinstance(value, int) and not isinstance(value, bool) and value >= least
    return [] if fine else [f"{name}: {value!r}; must be a whole number of at least {least}"]


def share(name: str, value: Any, *, above: bool = True) -> list[str]:
    """The problem of a setting that is no share: above 0 (or at least 0) and at most 1."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and (0 < value <= 1 or (value == 0 and not above)):
        return []
    return [f"{name}: {value!r}; must be {'above' if above else 'at least'} 0 and at most 1"]


def labels_tensor(rows: Sequence[Any], *, floating: bool = False) -> Tensor:
    """Labels of texts as one tensor, whole numbers or floats."""
    return torch.tensor(list(rows), dtype=torch.float32 if floating else torch.long)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(str, names[:6])) or "nothing"
    return shown + (f", … ({len(names)})" if len(names) > 6 else "")
