"""A model with a KV cache for a batch of prompts: one prefill, then one token per row and step.

A decoder reads its prompts padded on the left (segment 0), so that all rows end together and share one preallocated
cache; positions count from each row's first real token. An encoder-decoder reads the prompts with its encoder, padded
on the right, and its decoder starts with the start token.
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


def has_encoder(config: ModelConfig) -> bool:
    """Whether the model reads the prompt with an encoder."""
    return config.architecture == "encoder-decoder"


def context_limit(model: Model) -> int | None:
    """The most tokens that one side of a model reads, without its soft prompt; None without a limit on positions."""
    if not model.config.has_position_limit:
        return None
    return model.config.context_length - (0 if model.soft_prompt is None else model.soft_prompt.length)


class CachedModel:
    """Runs a batch of rows through a model with a KV cache. `logits` (B, V) predict each row's next token.

    Attributes: `decoder_ids` (B, W), what the decoder reads in the prefill, PADDING on the left; `start` (B, 1), its
    length without padding; `cache`.
    """

    logits: Tensor

    def __init__(
        self,
        model: Model,
        prompts: Sequence[Sequence[int]],
        new: int,
        start_id: int | None = None,
        adapters: Sequence[str | None] | None = None,
    ):
        """Allocates the cache for the prompts and at most `new` tokens after each; `prefill` runs the prompts.

        `start_id` is the decoder's start token, if it has one. `adapters` names each row's adapter; None keeps the
        adapters that are active.
        """
        self.model, self.device, self.prompts = model, model.device, prompts
        self.has_encoder, self.adapters = has_encoder(model.config), None if adapters is None else list(adapters)
        if self.adapters is not None:
            model.adapter_set.activate(self.adapters)
        self.positions: Tensor | None = None
        """Position of each row's next token (B, 1); None while no row is padded."""
        if self.has_encoder:
            self.decoder_ids = torch.full((len(prompts), 1), start_id or 0, device=self.device)
        else:
            self.decoder_ids = _padded(prompts, left=True).to(self.device)
        self.start = (self.decoder_ids != PADDING).sum(dim=1, keepdim=True)
        self.cache = KVCache(
            model.config,
            len(prompts),
            self.decoder_ids.shape[1] + new + (0 if model.soft_prompt is None else model.soft_prompt.length),
            dtype=model.embed_tokens.weight.dtype,
            device=self.device,
        )

    def prefill(self) -> None:
        """Runs the prompts; `logits` become those of each row's first new token."""
        if self.has_encoder:
            ids = _padded(self.prompts, left=False).to(self.device)
            real = ids != PADDING
            segments = None if bool(real.all()) else real.long()
            self.logits = self._forward(ids.clamp(min=0), segments=segments, decoder_input_ids=self.decoder_ids)
            return
        real = self.decoder_ids != PADDING
        positions = segments = None
        if not bool(real.all()):
            segments = real.long()
            positions = (segments.cumsum(dim=1) - 1).clamp(min=0)
            self.positions = positions[:, -1:] + 1
        self.logits = self._forward(self.decoder_ids.clamp(min=0), positions=positions, segments=segments)

    def _forward(self, input_ids: Tensor | None, **named: Any) -> Tensor:
        if self.adapters is not None:
            named["adapters"] = self.adapters
        hidden = self.model.hidden_states(input_ids, cache=self.cache, **named)
        return self.model.lm_logits(hidden[:, -1])

    def read(self, tokens: Tensor) -> None:
        """Runs one token per row (B,); `logits` become those of the token after it."""
        if self.has_encoder:
            self.logits = self._forward(None, decoder_input_ids=tokens[:, None])
            return
        positions = self.positions
        if positions is not None:
            # Finished rows that have not left the batch yet would exceed the model's last position.
            following, limit = positions + 1, context_limit(self.model)
            self.positions = following if limit is None else following.clamp(max=limit - 1)
        self.logits = self._forward(tokens[:, None], positions=positions)

    def select(self, rows: Tensor) -> None:
        """Keeps, repeats or reorders rows of the batch."""
        self.cache.select(rows)
        if self.adapters is not None:
            self.adapters = [self.adapters[row] for row in rows.tolist()]
        self.logits, self.decoder_ids, self.start = self.logits[rows], self.decoder_ids[rows], self.start[rows]
        if self.positions is not None:
            self.positions = self.positions[rows]


def _padded(prompts: Sequence[Sequence[int]], *, left: bool) -> Tensor:
    width = max(len(prompt) for prompt in prompts)
    rows = []
    for prompt in prompts:
        padding = [PADDING] * (width - len(prompt))
        rows.append([*padding, *prompt] if left else [*prompt, *padding])
    return torch.tensor(rows)
