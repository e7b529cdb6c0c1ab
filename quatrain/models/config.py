"""Everything that shapes a network, as named choices.

A family (`quatrain.models.families`) turns a Hugging Face `config.json` into a `ModelConfig` and back;
the stack (`quatrain.models.stack`) reads nothing else.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from quatrain.errors import InputError

Position = Literal["rotary", "learned"]
Norm = Literal["rms", "layer"]
FeedForward = Literal["gated", "plain"]

CHOICES: dict[str, tuple[str, ...]] = {
    "position": ("rotary", "learned"),
    "norm": ("rms", "layer"),
    "feed_forward": ("gated", "plain"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu"),
}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder-only transformer. Sizes count elements; rates are shares between 0 and 1."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    head_dim: int = 0
    """Width of one head; 0 means hidden_size / num_attention_heads."""
    position: Position = "rotary"
    rope_theta: float = 10000.0
    norm: Norm = "rms"
    norm_eps: float = 1e-5
    feed_forward: FeedForward = "gated"
    activation: str = "silu"
    attention_bias: bool = False
    """Whether the query, key, value and output projections carry a bias."""
    feed_forward_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    dropout: float = 0.0
    """Share of the embedding's and every residual branch's elements dropped in training."""
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    extra: dict[str, Any] = field(default_factory=dict, compare=False)
    """Keys of the original `config.json` that shape nothing here and are written back as they were."""

    def __post_init__(self) -> None:
        if self.head_dim == 0 and self.num_attention_heads > 0:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        problems = list(self._problems())
        if problems:
            raise InputError("This model configuration cannot be built:", problems)

    def _problems(self) -> Iterator[str]:
        sizes = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "head_dim",
        )
        wrong = [name for name in sizes if not isinstance(getattr(self, name), int) or getattr(self, name) < 1]
        for name in wrong:
            yield f"{name}: {getattr(self, name)!r}; must be a whole number of at least 1"
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                near = difflib.get_close_matches(str(value), allowed, 1)
                yield f"{name}: {value!r}; must be one of {', '.join(allowed)}" + (
                    f"; did you mean {near[0]}?" if near else ""
                )
        if not wrong and self.num_attention_heads % self.num_key_value_heads:
            yield (
                f"num_key_value_heads: {self.num_key_value_heads}; must divide num_attention_heads "
                f"({self.num_attention_heads})"
            )
        if not wrong and self.position == "rotary" and self.head_dim % 2:
            yield f"head_dim: {self.head_dim}; rotary positions need an even width of each head"
        if not 0 <= self.dropout < 1:
            yield f"dropout: {self.dropout}; must be at least 0 and below 1"

    def with_(self, **changes: Any) -> ModelConfig:
        """This configuration with some fields changed."""
        return replace(self, **changes)
