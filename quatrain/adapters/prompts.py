"""Trained prompts over a frozen model: prompt tuning, p-tuning and prefix tuning.

Lester et al. 2021 (prompt tuning, arXiv 2104.08691), Liu et al. 2021 (p-tuning, arXiv 2103.10385), Li and Liang 2021
(prefix tuning, arXiv 2101.00190).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from quatrain.adapters.layer import init_uniform
from quatrain.adapters.settings import AdapterSettings
from quatrain.core.errors import InputError
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.context import Prefix
from quatrain.models.transformer.soft_prompts import SoftPrompt
from quatrain.models.transformer.stack import Model
from quatrain.planning.limits import check_bytes
from quatrain.tokenizers.tokenizer import Tokenizer


class PromptTuning(SoftPrompt):
    """Trained embeddings (length, width), initialized at random or from the tokens of a text."""

    method: ClassVar[str] = "prompt"

    def __init__(self, length: int, width: int, device: torch.device | str = "cpu"):
        super().__init__()
        self.length = length
        self.rows = nn.Parameter(torch.zeros(length, width, device=device))

    @classmethod
    def create(cls, model: Model, settings: AdapterSettings, device: torch.device | str) -> Self:
        """An uninitialized prompt for a model."""
        return cls(settings.num_virtual_tokens, model.embed_tokens.embedding_dim, device)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Standard normal, like an embedding."""
        with torch.no_grad():
            self.rows.copy_(torch.randn(self.rows.shape, generator=generator))

    def init_from_tokens(self, embedding: Tensor, ids: Sequence[int]) -> None:
        """Copies the embeddings of these tokens, repeated if there are fewer of them than positions."""
        if not ids:
            raise InputError("init_text: has no tokens; give a text with tokens, or leave init_text out.")
        chosen = [ids[place % len(ids)] for place in range(self.length)]
        with torch.no_grad():
            self.rows.copy_(embedding[chosen])

    def embeddings(self) -> Tensor:
        return self.rows

    def file_tensor(self) -> Tensor:
        """The embeddings (length, width), as files store them."""
        return self.embeddings().detach()


class PTuning(PromptTuning):
    """Trained embeddings behind a three-layer network, which makes them depend on each other during training."""

    method: ClassVar[str] = "p-tuning"

    def __init__(self, length: int, width: int, hidden: int, device: torch.device | str = "cpu"):
        super().__init__(length, width, device)
        self.network = nn.Sequential(
            nn.Linear(width, hidden, device=device), nn.ReLU(),
            nn.Linear(hidden, hidden, device=device), nn.ReLU(),
            nn.Linear(hidden, width, device=device),
        )  # fmt: skip

    @classmethod
    def create(cls, model: Model, settings: AdapterSettings, device: torch.device | str) -> Self:
        width = model.embed_tokens.embedding_dim
        return cls(settings.num_virtual_tokens, width, settings.bottleneck_dim or width, device)

    def reset_parameters(self, generator: torch.Generator) -> None:
        super().reset_parameters(generator)
        _init_network(self.network, generator)

    def embeddings(self) -> Tensor:
        embeddings: Tensor = self.network(self.rows)
        return embeddings


class PrefixTuning(SoftPrompt):
    """Trained keys and values in every layer; `rows` (length, layers * 2 * num_key_value_heads * head_dim).

    With `hidden`, rows are embeddings behind a two-layer network, which the paper found to train more stably.
    """

    method: ClassVar[str] = "prefix"

    def __init__(self, length: int, config: ModelConfig, hidden: int = 0, device: torch.device | str = "cpu"):
        super().__init__()
        self.length, self.layers = length, config.num_hidden_layers
        self.heads, self.width = config.num_key_value_heads, config.head_dim
        size = self.heads * self.width
        row_size = self.layers * 2 * size
        self.rows = nn.Parameter(torch.zeros(length, size if hidden else row_size, device=device))
        self.network: nn.Sequential | None = None
        if hidden:
            self.network = nn.Sequential(
                nn.Linear(size, hidden, device=device), nn.Tanh(), nn.Linear(hidden, row_size, device=device)
            )

    @classmethod
    def create(cls, model: Model, settings: AdapterSettings, device: torch.device | str) -> Self:
        return cls(settings.num_virtual_tokens, model.config, settings.bottleneck_dim, device)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Standard normal, like an embedding; the network's layers like linear layers."""
        with torch.no_grad():
            self.rows.copy_(torch.randn(self.rows.shape, generator=generator))
        _init_network(self.network or (), generator)

    def embeddings(self) -> None:
        return None

    def _whole(self) -> Tensor:
        return self.rows if self.network is None else self.network(self.rows)

    def keys_values(self) -> Prefix:
        layers = self._whole().view(self.length, self.layers, 2, self.heads, self.width).permute(1, 2, 3, 0, 4)
        return Prefix([(keys, values) for keys, values in layers])

    def file_tensor(self) -> Tensor:
        """Keys and values of all layers (length, layers * 2 * heads * head_dim), as files store them."""
        return self._whole().detach()


CLASSES: dict[str, type[PromptTuning | PrefixTuning]] = {
    prompt.method: prompt for prompt in (PromptTuning, PTuning, PrefixTuning)
}


def make_prompt(
    model: Model, settings: AdapterSettings, generator: torch.Generator, tokenizer: Tokenizer | None
) -> SoftPrompt:
    """The initialized soft prompt of the settings. Raises InputError if it does not fit in memory."""
    prompt_class = CLASSES[settings.method]
    elements = sum(parameter.numel() for parameter in prompt_class.create(model, settings, "meta").parameters())
    options = f"num_virtual_tokens {settings.num_virtual_tokens:,} and bottleneck_dim {settings.bottleneck_dim:,}"
    check_bytes(4 * elements, f"A {settings.method} of {options}", "make it smaller", model.device)
    prompt = prompt_class.create(model, settings, model.device)
    prompt.reset_parameters(generator)
    if settings.init_text is not None and isinstance(prompt, PromptTuning):
        if tokenizer is None:
            raise InputError("init_text: needs a tokenizer to read it, and there is none; leave init_text out.")
        prompt.init_from_tokens(model.embed_tokens.weight, tokenizer.encode(settings.init_text))
    return prompt


def _init_network(network: Iterable[nn.Module], generator: torch.Generator) -> None:
    for layer in network:
        if isinstance(layer, nn.Linear):
            init_uniform(layer.weight, generator)
            with torch.no_grad():
                layer.bias.zero_()


def check(model: Model, method: str) -> None:
    """Raises InputError if the model cannot have a soft prompt of this method."""
    problems = []
    if model.encoder is not None and method == "prefix":
        problems.append(f"method: prefix; {model.config.family} has an encoder: use prompt or p-tuning")
    if model.config.recurs and method == "prefix":
        problems.append(f"method: prefix; the recurrent layers of {model.config.family} have no keys: use prompt")
    if method == "prefix" and (model.config.shared_kv_layers or model.config.full_head_dim):
        problems.append(f"method: prefix; the layers of {model.config.family} differ in their keys: use lora")
    if model.config.layer_embedding_size:
        text = f"method: {method}; {model.config.family} embeds tokens for every layer, and a prompt has none: use lora"
        problems.append(text)
    if model.soft_prompt is not None:
        problems.append("method: the model has a soft prompt already")
    if problems:
        raise InputError("This adapter cannot be applied:", problems)
