"""The model as decoding sees it: prompts are read once, then a token per row and step, all cached.

A decoder reads its prompts itself, padded on the left (segment 0), so that the rows' ends are aligned and one
preallocated cache serves them all; positions are counted from each row's first real token. An encoder-decoder reads
them with its encoder, padded on the right, and its decoder begins with the start token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from quatrain.generation.constraints import PADDING
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.kv_cache import KVCache
from quatrain.models.transformer.stack import Model


def encodes(config: ModelConfig) -> bool:
    """Whether a model of this configuration has an encoder for the prompt."""
    return config.architecture == "encoder-decoder"


def context(model: Model) -> int | None:
    """The most tokens that one side of a model reads, beside its soft prompt; None where its positions have no end."""
    if not model.config.bounded:
        return None
    return model.config.context_length - (0 if model.prompt is None else model.prompt.length)


class Reader:
    """Reads for a batch of rows. `logits` (B, V) are those of every row's next token."""

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        new: int,
        start_id: int | None = None,
        adapters: Sequence[str | None] | None = None,
    ):
        """Reads the prompts; `new` tokens at most will follow. `start_id` is the decoder's start token, if it has one.
        `adapters` are those that the rows of a mixture go through; None leaves what was chosen.

        Attributes: `said` (B, W), what the decoder has read, PADDING on the left; `start` (B, 1), its real length.
        """
        self.model, self.device = model, model.device
        self.encodes, self.adapters = encodes(model.config), None if adapters is None else list(adapters)
        if self.adapters is not None:
            model.adapter_set.choose(self.adapters)
        self.positions: Tensor | None = None
        """Position of each row's next token (B, 1); None while no row is padded."""
        if self.encodes:
            self.said = torch.full((len(prompts), 1), start_id or 0, device=self.device)
        else:
            self.said = _padded(prompts, left=True).to(self.device)
        self.start = (self.said != PADDING).sum(dim=1, keepdim=True)
        self.cache = KVCache(
            model.config,
            len(prompts),
            self.said.shape[1] + new + (0 if model.prompt is None else model.prompt.length),
            dtype=model.embed_tokens.weight.dtype,
            device=self.device,
        )
        self.logits = self._encode(_padded(prompts, left=False).to(self.device)) if self.encodes else self._prefill()

    def _prefill(self) -> Tensor:
        real = self.said != PADDING
        positions = segments = None
        if not bool(real.all()):
            segments = real.long()
            positions = (segments.cumsum(dim=1) - 1).clamp(min=0)
            self.positions = positions[:, -1:] + 1
        return self._forward(self.said.clamp(min=0), positions=positions, segments=segments)

    def _encode(self, ids: Tensor) -> Tensor:
        real = ids != PADDING
        segments = None if bool(real.all()) else real.long()
        return self._forward(ids.clamp(min=0), segments=segments, decoder_input_ids=self.said)

    def _forward(self, input_ids: Tensor | None, **named: Any) -> Tensor:
        if self.adapters is not None:
            named["adapters"] = self.adapters
        hidden = self.model.hidden_states(input_ids, cache=self.cache, **named)
        return self.model.lm_logits(hidden[:, -1])

    def read(self, tokens: Tensor) -> None:
        """Reads one token per row, (B,); `logits` become those after it."""
        if self.encodes:
            self.logits = self._forward(None, decoder_input_ids=tokens[:, None])
            return
        positions = self.positions
        if positions is not None:
            # Finished rows that still wait to leave would run past the model's last position.
            following, limit = positions + 1, context(self.model)
            self.positions = following if limit is None else following.clamp(max=limit - 1)
        self.logits = self._forward(tokens[:, None], positions=positions)

    def select(self, rows: Tensor) -> None:
        """Keeps, repeats or reorders rows of the batch."""
        self.cache.select(rows)
        if self.adapters is not None:
            self.adapters = [self.adapters[row] for row in rows.tolist()]
        self.logits, self.said, self.start = self.logits[rows], self.said[rows], self.start[rows]
        if self.positions is not None:
            self.positions = self.positions[rows]


def _padded(prompts: Sequence[Sequence[int]], *, left: bool) -> Tensor:
    width = max(len(prompt) for prompt in prompts)
    rows = []
    for prompt in prompts:
        padding = [PADDING] * (width - len(prompt))
        rows.append([*padding, *prompt] if left else [*prompt, *padding])
    return torch.tensor(rows)
