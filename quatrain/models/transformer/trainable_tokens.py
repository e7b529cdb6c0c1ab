"""Trained rows of single tokens that replace those of a frozen embedding, and of a head.

The frozen matrix does not change and has no gradient; a small table holds the trained rows, which are used wherever
these tokens are embedded or predicted. PEFT calls this `trainable_token_indices`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PARTS = ("embed_tokens", "lm_head")
"""The matrices with a row for each token."""


class TrainableTokens(nn.Module):
    """Replaces the rows of some tokens in a model's embedding and head."""

    def embed(self, tokens: Tensor, embedded: Tensor) -> Tensor:
        """The embeddings (B, T, C) of tokens (B, T), given those of the model's own matrix."""
        raise NotImplementedError

    def lm_logits(self, hidden: Tensor, logits: Tensor, bias: Tensor | None, owners: Tensor | None = None) -> Tensor:
        """The logits (…, V) of hidden states (…, C), given those of the model's own head, which may be overwritten.

        `bias` (V) is the head's. `owners` (N) gives the batch row of each of the states (N, C).
        """
        raise NotImplementedError


class TokenRows(TrainableTokens):
    """Tables (K, C) in float32 for the tokens `ids`: one for the embedding, and one for a head that is not tied.

    Either may be missing; its matrix is then used unchanged. A tied head uses the embedding's table.
    """

    def __init__(self, ids: Sequence[int], tables: Mapping[str, Tensor], *, tied: bool, device: torch.device):
        """`tables` maps `embed_tokens` and `lm_head` to their tables, whose rows belong to `ids`."""
        super().__init__()
        order = sorted(range(len(ids)), key=lambda place: ids[place])
        self.ids = tuple(ids[place] for place in order)
        self.tied = tied
        self.index: Tensor
        self.register_buffer("index", torch.tensor(self.ids, device=device), persistent=False)
        for part in PARTS:
            table = None
            if part in tables:
                table = nn.Parameter(tables[part].detach()[order].to(device, torch.float32))
            self.register_parameter(part, table)
        self.embed_tokens: nn.Parameter | None
        self.lm_head: nn.Parameter | None

    def tables(self) -> dict[str, nn.Parameter]:
        """The tables by the names of their matrices."""
        return dict(self.named_parameters())

    @property
    def head_table(self) -> nn.Parameter | None:
        """The table (K, C) that the head uses; None if it uses its matrix alone."""
        return self.embed_tokens if self.tied else self.lm_head

    def embed(self, tokens: Tensor, embedded: Tensor) -> Tensor:
        if self.embed_tokens is None:
            return embedded
        place = torch.searchsorted(self.index, tokens.contiguous()).clamp(max=len(self.ids) - 1)
        learned = F.embedding(place, self.embed_tokens).to(embedded.dtype)
        return torch.where((self.index[place] == tokens)[..., None], learned, embedded)

    def lm_logits(self, hidden: Tensor, logits: Tensor, bias: Tensor | None, owners: Tensor | None = None) -> Tensor:
        if self.head_table is None:
            return logits
        own = F.linear(hidden, self.head_table.to(hidden.dtype), None if bias is None else bias[self.index])
        return logits.index_copy_(-1, self.index, own.to(logits.dtype))
