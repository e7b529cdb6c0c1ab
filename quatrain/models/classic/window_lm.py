"""Neural language models of a fixed window (Bengio et al. 2003): the embeddings of the last n tokens, joined, pass one
hidden layer. With `combine = "mean"` the window is a bag: the model knows which tokens precede, not in which order.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from quatrain.models.classic._network import Network, NetworkConfig
from quatrain.models.classic.base import StateModel


class WindowLMConfig(NetworkConfig):
    """A language model of the last `window` tokens. `combine`: their embeddings are joined in order, or averaged."""

    model_type: str = "window-lm"
    window: int = Field(default=8, ge=1, le=100_000)
    combine: Literal["concatenate", "mean"] = "concatenate"


class WindowLM(Network, StateModel):
    """Predicts a token from the `window` tokens before it; before the beginning of a text stands a vector of its own.

    The hidden layer and the direct path around it are those of the paper.
    """

    Config: ClassVar[Any] = WindowLMConfig

    def __init__(self, config: WindowLMConfig):
        super().__init__(config)
        self.window = config.window
        width = config.embedding_width
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.beginning = nn.Parameter(torch.zeros(width))
        joined = width * (self.window if config.combine == "concatenate" else 1)
        sizes = [joined] + [config.hidden_size] * config.num_hidden_layers
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(sizes))
        self.output = nn.Linear(config.hidden_size, config.output_hidden_size)
        self.direct = nn.Linear(joined, config.output_hidden_size, bias=False)
        self.add_head(config.output_hidden_size)

    def hidden_states(self, input_ids: Tensor, *, segments: Tensor | None = None, **inputs: Any) -> Tensor:
        embedded = self.embed(input_ids)
        before = self.beginning.expand(embedded.shape[0], self.window - 1, -1)
        return self._of_windows(torch.cat((before, embedded), dim=1))

    def _of_windows(self, embedded: Tensor) -> Tensor:
        """Hidden states (B, T, C) of the windows that embeddings (B, window - 1 + T, E) have, one for each token."""
        windows = self.drop(embedded).unfold(1, self.window, 1)
        if self.config.combine == "mean":
            joined = windows.mean(-1)
        else:
            joined = windows.transpose(2, 3).flatten(2)
        x = joined
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.drop(self.output(x) + self.direct(joined))

    def start(self, count: int, sources: Any = None) -> list[Any]:
        """A state is the last `window` - 1 tokens."""
        return [()] * count

    def advance(self, states: Sequence[Any], tokens: Sequence[Sequence[int]]) -> tuple[Tensor, list[Any]]:
        rows = []
        for state, ids in zip(states, tokens, strict=True):
            text = torch.tensor([[*state, *ids]], device=self.device)
            rows.append(self.hidden_states(text)[0, len(state) :])
        kept = self.window - 1
        after = [tuple([*state, *ids][-kept:]) if kept else () for state, ids in zip(states, tokens, strict=True)]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), after


MODEL = WindowLM
