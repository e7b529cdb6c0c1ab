"""Rows of single tokens that stand in place of those of the embedding, and of a head.

A frozen matrix with a row for each token stays as it is, and takes no gradient: what a few tokens have learned is a
small table of its own, put in where the tokens are read and said. PEFT's name for it is `trainable_token_indices`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PARTS = ("embed_tokens", "lm_head")
"""What has a row for each token."""


class TrainableTokens(nn.Module):
    """What a model reads and says of some tokens in place of its embedding's rows, and of its head's."""

    def embed(self, tokens: Tensor, embedded: Tensor) -> Tensor:
        """The embedding (B, T, C) of tokens (B, T), given what the model's own is."""
        raise NotImplementedError

    def lm_logits(self, hidden: Tensor, logits: Tensor, bias: Tensor | None, owners: Tensor | None = None) -> Tensor:
        """The logits (…, V) of hidden states (…, C), given the model's own, which are used up, and its head's bias
        (V). `owners` (N) are the rows of the batch that states (N, C) are of.
        """
        raise NotImplementedError


class LearnedRows(TrainableTokens):
    """A table (K, C) for the embedding, and one for a head that is not tied, of the tokens `ids`, in float32.

    Either may be missing: its matrix is then as it is. A head that is tied says by the embedding's table.
    """

    def __init__(self, ids: Sequence[int], tables: Mapping[str, Tensor], *, tied: bool, device: torch.device):
        """`tables` by the names of the matrices: `embed_tokens`, `lm_head`; their rows are those of `ids`."""
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
        """The tables that there are, by the names of their matrices."""
        return dict(self.named_parameters())

    @property
    def said(self) -> nn.Parameter | None:
        """The table (K, C) that the head says by; None where it says by its matrix alone."""
        return self.embed_tokens if self.tied else self.lm_head

    def embed(self, tokens: Tensor, embedded: Tensor) -> Tensor:
        if self.embed_tokens is None:
            return embedded
        place = torch.searchsorted(self.index, tokens.contiguous()).clamp(max=len(self.ids) - 1)
        learned = F.embedding(place, self.embed_tokens).to(embedded.dtype)
        return torch.where((self.index[place] == tokens)[..., None], learned, embedded)

    def lm_logits(self, hidden: Tensor, logits: Tensor, bias: Tensor | None, owners: Tensor | None = None) -> Tensor:
        if self.said is None:
            return logits
        said = F.linear(hidden, self.said.to(hidden.dtype), None if bias is None else bias[self.index])
        return logits.index_copy_(-1, self.index, said.to(logits.dtype))
