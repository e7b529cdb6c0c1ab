"""The policy of reinforcement learning: log-probabilities of its completions, its value head, its reference.

There is one definition of a token's log-probability, `training.chunked_loss.token_logprobs`: the log-softmax over the
whole vocabulary of the logits divided by the sampling temperature. Ratios, references and rollouts
(`logprobs_mode="temperature"` of the engine) use it, and DPO does at temperature 1. Filters such as top-p are not part
of it: they change which tokens are drawn, not the policy that learns.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from quatrain.adapters.apply import adapters_disabled
from quatrain.data.batches import IGNORE_INDEX, TokenBatch
from quatrain.models.io.safetensors_writer import write_safetensors
from quatrain.models.transformer.stack import Model
from quatrain.training.chunked_loss import token_logprobs

VALUE_FILE = "value.safetensors"
"""The weights of the value head or value model in a checkpoint."""


def completion_states(model: Model, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    """The hidden states (M, C) that predict the labelled tokens of a batch, these labels (M,), and their mask (B, T).

    Padding and prompts take no part in what follows, so that nothing in them, not even NaN, reaches a mean.
    """
    hidden = model.hidden_states(**batch.inputs)
    mask = batch.labels != IGNORE_INDEX
    return hidden[mask], batch.labels[mask], mask


def label_logprobs(model: Model, hidden: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities (B, T) of labels (B, T), 0 where there is none, for hidden states (B, T, C)."""
    mask = labels != IGNORE_INDEX
    owners = mask.nonzero()[:, 0]
    return spread(token_logprobs(model, hidden[mask], labels[mask], owners=owners)[0], mask)


def spread(values: Tensor, mask: Tensor) -> Tensor:
    """Values (M,) at the True places of a mask (B, T), 0 elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


class ValueHead(nn.Module):
    """A linear value head on the policy's last hidden states. Its first values are 0."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, batch: TokenBatch, states: Tensor, mask: Tensor) -> Tensor:
        """Values (M,) in float32 of the policy's hidden states (M, C)."""
        values: Tensor = self.linear(states)[:, 0].float()
        return values


class ValueModel(nn.Module):
    """A value function with weights of its own: a copy of the policy's layers under a value head."""

    def __init__(self, policy: Model):
        super().__init__()
        self.model = copy.deepcopy(policy)
        self.model.lm_head = None
        self.head = ValueHead(policy.config.output_hidden_size)

    def forward(self, batch: TokenBatch, states: Tensor, mask: Tensor) -> Tensor:
        """Values (M,) in float32 at the True places of the mask (B, T)."""
        values: Tensor = self.head(batch, self.model.hidden_states(**batch.inputs)[mask], mask)
        return values


class ActorCritic(nn.Module):
    """A policy and its value head or value model, trained together."""

    def __init__(self, policy: Model, value: ValueHead | ValueModel):
        super().__init__()
        self.policy, self.value = policy, value

    @property
    def output_size(self) -> int:
        """The size of the vocabulary, by which the trainer knows logits when it measures memory."""
        return self.policy.config.vocab_size

    def save_value(self, folder: Path) -> None:
        """Write the weights of the value function into a checkpoint."""
        with open(folder / VALUE_FILE, "wb") as file:
            write_safetensors(file, dict(self.value.state_dict()))

    def load_value(self, folder: Path) -> None:
        """Read the weights of the value function from a checkpoint."""
        from safetensors.torch import load_file

        self.value.load_state_dict(load_file(folder / VALUE_FILE))


def policy_of(module: nn.Module) -> Model:
    """The language model of what a trainer trains: an `ActorCritic`'s policy, or the model itself."""
    policy: Any = module.policy if isinstance(module, ActorCritic) else module
    return policy


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In this context a module is in evaluation mode; afterwards in the mode from before."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


@contextmanager
def as_in_training(module: nn.Module) -> Iterator[None]:
    """In this context a forward pass uses the kernels of a training step, whose rounding differs from inference, but
    builds no graph: its results equal those of the next training step bit for bit.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class Reference(Protocol):
    """What the policy is kept near to."""

    def logprobs(self, batch: TokenBatch, temperature: float) -> Tensor:
        """Log-probabilities (B, T) of the labels under the reference; 0 where there is no label."""
        ...


class BaseReference:
    """The base model under the policy's adapter: no second copy of the weights."""

    def __init__(self, policy: Model):
        self.policy = policy

    def logprobs(self, batch: TokenBatch, temperature: float) -> Tensor:
        with adapters_disabled(self.policy, dequantize=False):
            return _logprobs(self.policy, batch, temperature)


class FrozenReference:
    """A frozen copy of a model. It follows the dtype and device of the policy, so that equal weights agree exactly."""

    def __init__(self, policy: Model):
        self.policy = policy
        self.model = copy.deepcopy(policy).requires_grad_(False).eval()

    def logprobs(self, batch: TokenBatch, temperature: float) -> Tensor:
        like = self.policy.embed_tokens.weight
        self.model.to(device=like.device, dtype=like.dtype)
        return _logprobs(self.model, batch, temperature)


def _logprobs(model: Model, batch: TokenBatch, temperature: float) -> Tensor:
    with evaluating(model), as_in_training(model):
        states, labels, mask = completion_states(model, batch)
        return spread(token_logprobs(model, states, labels, temperature)[0], mask)
