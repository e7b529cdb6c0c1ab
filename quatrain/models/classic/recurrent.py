"""Recurrent language models: an embedding, recurrent layers, and a head that shares the embedding's weights.

The state after all tokens before is everything that the model knows of a text, so that generation needs no cache that
grows. Mikolov et al. 2010; Merity et al. 2017 (arXiv 1708.02182).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quatrain.models.classic._network import Network
from quatrain.models.classic._recurrent import LayerState, RecurrentConfig, RecurrentStack, joined, of_equal_length
from quatrain.models.classic.base import StateModel


class RecurrentLMConfig(RecurrentConfig):
    """A recurrent language model."""

    model_type: str = "recurrent"


class RecurrentLM(Network, StateModel):
    """Each token is predicted from the state after all tokens before it."""

    Config: ClassVar[Any] = RecurrentLMConfig

    def __init__(self, config: RecurrentLMConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_width)
        self.stack = RecurrentStack(
            config, config.embedding_width, bidirectional=False, output_size=config.output_hidden_size
        )
        self.add_head(config.output_hidden_size)

    def hidden_states(self, input_ids: Tensor, *, segments: Tensor | None = None, **inputs: Any) -> Tensor:
        """The last hidden states (B, T, C) of texts (B, T), each from its beginning."""
        return self.carried(input_ids)[0]

    def carried(self, input_ids: Tensor, state: Sequence[LayerState] | None = None) -> tuple[Tensor, list[LayerState]]:
        """Hidden states (B, T, C) of tokens (B, T) that continue texts with this state, and the state after them."""
        hidden, after = self.stack(self.drop(self.embed(input_ids)), self.drop, state)
        return self.drop(hidden), after

    def start(self, count: int, sources: Any = None) -> list[Any]:
        """For each text the state of every layer: h (H,), and c (H,) for an LSTM."""
        return [[tuple(part[0] for part in layer) for layer in self.stack.start(1)]] * count

    def advance(self, states: Sequence[Any], tokens: Sequence[Sequence[int]]) -> tuple[Tensor, list[Any]]:
        hidden = self.stack.new_outputs(len(tokens), max(map(len, tokens)))
        after: list[Any] = [None] * len(tokens)
        for rows in of_equal_length(tokens):
            ids = torch.tensor([list(tokens[row]) for row in rows], device=self.device)
            found, new = self.carried(ids, joined([states[row] for row in rows]))
            hidden[rows, : ids.shape[1]] = found
            for place, row in enumerate(rows):
                after[row] = [tuple(part[place] for part in layer) for layer in new]
        return hidden, after

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"state": f"{self.state_bytes():,} bytes, however long the text is"}

    def state_bytes(self) -> int:
        return sum(part.nbytes for layer in self.stack.start(1) for part in layer)

    @torch.enable_grad()
    def gradient_norms(self, input_ids: Tensor) -> list[float]:
        """How strongly the last prediction depends on each input before it, the first input first.

        The norm of the gradient of the last token's loss with respect to the embedding of every token before it, mean
        over texts input_ids (B, T). Why it vanishes: Bengio et al. 1994; Pascanu et al. 2013 (arXiv 1211.5063).
        """
        was_training = self.training
        self.eval()
        embedded = self.embed(input_ids[:, :-1]).detach().requires_grad_(True)
        hidden, _ = self.stack(embedded, self.drop)
        loss = nn.functional.cross_entropy(self.lm_logits(hidden[:, -1]), input_ids[:, -1], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, embedded)
        self.train(was_training)
        norms: list[float] = gradient.norm(dim=-1).mean(0).tolist()
        return norms


MODEL = RecurrentLM
