"""The EvoFormer: which residues of a protein touch, from an alignment of related sequences.

The trunk of AlphaFold 2 (Jumper et al. 2021; the algorithms are those of its supplementary information). Two
representations learn from each other: of the alignment (B, S, L, hidden_size), S sequences of L residues, and of pairs
of residues (B, L, L, pair_size). Attention is that of any transformer, over another axis each time: along a sequence,
down a column, from each edge of a triangle to the next. AlphaFold's structure module, templates and its second stack
for further sequences are left out; the head scores contacts.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.core.errors import InputError
from quatrain.models.classic._network import Network, NetworkConfig

FAR = 32
"""Distances along the sequence are told apart up to this one, in both directions (algorithm 4)."""


class EvoformerConfig(NetworkConfig):
    """Sizes of an EvoFormer; the defaults are AlphaFold 2's. `hidden_size` is the width of the alignment, c_m there."""

    heads: ClassVar[tuple[str, ...]] = ("contacts",)
    architecture: ClassVar[str] = "encoder"

    model_type: str = "evoformer"
    head: str = "contacts"
    vocab_size: int = Field(default=23, ge=1)
    hidden_size: int = Field(default=256, ge=1, le=100_000)
    num_hidden_layers: int = Field(default=48, ge=1, le=1_000)
    pair_size: int = Field(default=128, ge=1, le=100_000)
    """c_z, the width of the representation of pairs."""
    msa_heads: int = Field(default=8, ge=1, le=1_000)
    pair_heads: int = Field(default=4, ge=1, le=1_000)
    head_size: int = Field(default=32, ge=1, le=10_000)
    """Width of one head, of both kinds."""
    outer_size: int = Field(default=32, ge=1, le=10_000)
    """Width of the vectors whose outer products inform the pairs."""
    triangle_size: int = Field(default=128, ge=1, le=100_000)
    """Width of the triangle updates."""
    expansion: int = Field(default=4, ge=1, le=100)
    """Width of a transition, as a multiple of its input's."""
    recycles: int = Field(default=3, ge=0, le=100)
    """How often the output goes back into the input."""
    max_length: int = Field(default=512, ge=2, le=100_000)


class GatedAttention(nn.Module):
    """Multi-head attention along the last axis but one, with a gate on each output channel (algorithm 7)."""

    def __init__(self, size: int, heads: int, head_size: int):
        super().__init__()
        self.heads, inner = heads, heads * head_size
        self.q_proj = nn.Linear(size, inner, bias=False)
        self.k_proj = nn.Linear(size, inner, bias=False)
        self.v_proj = nn.Linear(size, inner, bias=False)
        self.gate_proj = nn.Linear(size, inner)
        self.o_proj = nn.Linear(inner, size)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (B, R, N, C) to the same, each of R rows by itself; bias (B, heads, N, N) is added to the scores of all."""
        query, key, value = (
            projection(x).unflatten(-1, (self.heads, -1)).transpose(2, 3)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        added = None if bias is None else bias[:, None]
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=added)
        gate = torch.sigmoid(self.gate_proj(x))
        attended: Tensor = self.o_proj(gate * found.transpose(2, 3).flatten(-2))
        return attended


class RowAttention(nn.Module):
    """Each residue of a sequence attends to the others, biased by what is known of the pair (algorithm 7)."""

    def __init__(self, config: EvoformerConfig):
        super().__init__()
        self.norm, self.pair_norm = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.pair_size)
        self.bias_proj = nn.Linear(config.pair_size, config.msa_heads, bias=False)
        self.attention = GatedAttention(config.hidden_size, config.msa_heads, config.head_size)

    def forward(self, msa: Tensor, pair: Tensor) -> Tensor:
        """The update (B, S, L, C) of the alignment."""
        bias = self.bias_proj(self.pair_norm(pair)).permute(0, 3, 1, 2)
        updated: Tensor = self.attention(self.norm(msa), bias)
        return updated


class ColumnAttention(nn.Module):
    """A residue of one sequence attends to those at its place in the others (algorithm 8)."""

    def __init__(self, config: EvoformerConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.attention = GatedAttention(config.hidden_size, config.msa_heads, config.head_size)

    def forward(self, msa: Tensor) -> Tensor:
        """The update (B, S, L, C) of the alignment."""
        updated: Tensor = self.attention(self.norm(msa).transpose(1, 2)).transpose(1, 2)
        return updated


class Transition(nn.Module):
    """A feed-forward network on each entry (algorithms 9 and 15)."""

    def __init__(self, size: int, expansion: int):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.up_proj, self.down_proj = nn.Linear(size, expansion * size), nn.Linear(expansion * size, size)

    def forward(self, x: Tensor) -> Tensor:
        """The update (…, size)."""
        updated: Tensor = self.down_proj(F.relu(self.up_proj(self.norm(x))))
        return updated


class OuterProductMean(nn.Module):
    """What two columns of the alignment have in common, as the mean of outer products (algorithm 10)."""

    def __init__(self, config: EvoformerConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.left_proj = nn.Linear(config.hidden_size, config.outer_size)
        self.right_proj = nn.Linear(config.hidden_size, config.outer_size)
        self.o_proj = nn.Linear(config.outer_size**2, config.pair_size)

    def forward(self, msa: Tensor) -> Tensor:
        """The update (B, L, L, C) of the pairs."""
        x = self.norm(msa)
        outer = torch.einsum("bsic,bsjd->bijcd", self.left_proj(x), self.right_proj(x)) / msa.shape[1]
        updated: Tensor = self.o_proj(outer.flatten(-2))
        return updated


class TriangleUpdate(nn.Module):
    """An edge of a triangle learns from the other two (algorithms 11 and 12).

    `outgoing`: from the edges that start at its ends, else from those that end there.
    """

    def __init__(self, config: EvoformerConfig, outgoing: bool):
        super().__init__()
        size, inner = config.pair_size, config.triangle_size
        self.equation = "bikc,bjkc->bijc" if outgoing else "bkic,bkjc->bijc"
        self.norm, self.inner_norm = nn.LayerNorm(size), nn.LayerNorm(inner)
        self.left_proj, self.left_gate = nn.Linear(size, inner), nn.Linear(size, inner)
        self.right_proj, self.right_gate = nn.Linear(size, inner), nn.Linear(size, inner)
        self.gate_proj, self.o_proj = nn.Linear(size, size), nn.Linear(inner, size)

    def forward(self, pair: Tensor) -> Tensor:
        """The update (B, L, L, C) of the pairs."""
        x = self.norm(pair)
        left = torch.sigmoid(self.left_gate(x)) * self.left_proj(x)
        right = torch.sigmoid(self.right_gate(x)) * self.right_proj(x)
        product = self.o_proj(self.inner_norm(torch.einsum(self.equation, left, right)))
        updated: Tensor = torch.sigmoid(self.gate_proj(x)) * product
        return updated


class TriangleAttention(nn.Module):
    """An edge attends to the edges that share a node with it, biased by the third one (algorithms 13 and 14).

    `starting`: the edges share the node where they start, else the one where they end.
    """

    def __init__(self, config: EvoformerConfig, starting: bool):
        super().__init__()
        self.starting = starting
        self.norm = nn.LayerNorm(config.pair_size)
        self.bias_proj = nn.Linear(config.pair_size, config.pair_heads, bias=False)
        self.attention = GatedAttention(config.pair_size, config.pair_heads, config.head_size)

    def forward(self, pair: Tensor) -> Tensor:
        """The update (B, L, L, C) of the pairs."""
        x = self.norm(pair if self.starting else pair.transpose(1, 2))
        found: Tensor = self.attention(x, self.bias_proj(x).permute(0, 3, 1, 2))
        return found if self.starting else found.transpose(1, 2)


class EvoformerBlock(nn.Module):
    """One block: the alignment, then the pairs (algorithm 6)."""

    is_block = True
    """Marks the unit of activation checkpointing and torch.compile."""

    def __init__(self, config: EvoformerConfig):
        super().__init__()
        self.dropout = config.dropout
        self.row_attention, self.column_attention = RowAttention(config), ColumnAttention(config)
        self.msa_transition = Transition(config.hidden_size, config.expansion)
        self.outer_product_mean = OuterProductMean(config)
        self.outgoing, self.incoming = TriangleUpdate(config, True), TriangleUpdate(config, False)
        self.starting, self.ending = TriangleAttention(config, True), TriangleAttention(config, False)
        self.pair_transition = Transition(config.pair_size, config.expansion)

    def forward(self, msa: Tensor, pair: Tensor) -> tuple[Tensor, Tensor]:
        """msa (B, S, L, hidden_size) and pair (B, L, L, pair_size) to the same."""
        msa = msa + self._drop(self.row_attention(msa, pair), 1)
        msa = msa + self.column_attention(msa)
        msa = msa + self.msa_transition(msa)
        pair = pair + self.outer_product_mean(msa)
        pair = pair + self._drop(self.outgoing(pair), 1)
        pair = pair + self._drop(self.incoming(pair), 1)
        pair = pair + self._drop(self.starting(pair), 1)
        pair = pair + self._drop(self.ending(pair), 2)
        return msa, pair + self.pair_transition(pair)

    def _drop(self, x: Tensor, shared: int) -> Tensor:
        """Dropout with one mask for all entries of an axis."""
        if not self.training or not self.dropout:
            return x
        shape = [1 if axis == shared else size for axis, size in enumerate(x.shape)]
        return x * F.dropout(torch.ones(shape, dtype=x.dtype, device=x.device), self.dropout)


class Evoformer(Network):
    """Contacts of a protein from an alignment (B, S, L) of token ids, whose first sequence is the protein itself."""

    Config: ClassVar[Any] = EvoformerConfig

    def __init__(self, config: EvoformerConfig):
        super().__init__(config)
        msa, pair = config.hidden_size, config.pair_size
        self.embed_msa, self.embed_target = nn.Embedding(config.vocab_size, msa), nn.Embedding(config.vocab_size, msa)
        self.embed_left, self.embed_right = nn.Embedding(config.vocab_size, pair), nn.Embedding(config.vocab_size, pair)
        self.embed_distance = nn.Embedding(2 * FAR + 1, pair)
        self.recycled_msa_norm, self.recycled_pair_norm = nn.LayerNorm(msa), nn.LayerNorm(pair)
        self.blocks = nn.ModuleList(EvoformerBlock(config) for _ in range(config.num_hidden_layers))
        self.contact_norm = nn.LayerNorm(pair)
        self.contact_proj = nn.Linear(pair, 1)
        self.score = None

    embedding_std: ClassVar[float] = 0.5

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.contact_proj.weight.device

    def initialize(self, seed: int = 0) -> Evoformer:
        """Draws the weights; what is added to a representation starts at zero, and gates start open."""
        super().initialize(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                owner, leaf = name.split(".")[-2:]
                is_gate = owner.endswith("gate") or owner == "gate_proj"
                if owner in ("o_proj", "down_proj") or (is_gate and leaf == "weight"):
                    parameter.zero_()
                elif is_gate:
                    parameter.fill_(1.0)
        return self

    def representations(self, msa_ids: Tensor, recycles: int | None = None) -> tuple[Tensor, Tensor]:
        """The alignment (B, S, L, hidden_size) and the pairs (B, L, L, pair_size) after the last pass.

        Raises InputError for ids outside the vocabulary and alignments that are too long.
        """
        config = self.config
        if msa_ids.dim() != 3 or not 0 < msa_ids.shape[2] <= config.max_length or not msa_ids.shape[1]:
            raise InputError(
                f"alignment: shape {tuple(msa_ids.shape)}; must be (batch, sequences, residues) with at most "
                f"{config.max_length:,} residues."
            )
        if msa_ids.device.type == "cpu" and not 0 <= int(msa_ids.min()) <= int(msa_ids.max()) < config.vocab_size:
            raise InputError(f"alignment: has ids outside the vocabulary of {config.vocab_size}.")
        target = msa_ids[:, 0]
        places = torch.arange(msa_ids.shape[2], device=msa_ids.device)
        distance = (places - places[:, None]).clamp(-FAR, FAR) + FAR
        first_pair = (
            self.embed_left(target)[:, :, None] + self.embed_right(target)[:, None] + self.embed_distance(distance)
        )
        first_msa = self.embed_msa(msa_ids) + self.embed_target(target)[:, None]
        count = self._recycles() if recycles is None else recycles
        msa, pair = torch.zeros_like(first_msa), torch.zeros_like(first_pair)
        for number in range(count + 1):
            with torch.set_grad_enabled(torch.is_grad_enabled() and number == count):
                # The first sequence and the pairs of the pass before (algorithm 32); the structure is left out.
                target_row = first_msa[:, :1] + self.recycled_msa_norm(msa[:, :1])
                msa = torch.cat((target_row, first_msa[:, 1:]), dim=1)
                pair = first_pair + self.recycled_pair_norm(pair)
                for block in self.blocks:
                    msa, pair = block(msa, pair)
        return msa, pair

    def _recycles(self) -> int:
        """In training any number up to the most, so that every pass learns; else the most (section 1.10)."""
        most = int(self.config.recycles)
        return int(torch.randint(most + 1, ())) if self.training else most

    def forward(self, msa_ids: Tensor, labels: Any = None, **inputs: Any) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """Logits (B, L, L) of contacts, symmetric, of alignments (B, S, L); with labels the loss (B, L, L).

        labels (B, L, L) are 1 for contacts, 0 for none; -100 has no loss.
        """
        pair = self.contact_norm(self.representations(msa_ids)[1])
        logits = self.contact_proj(pair + pair.transpose(1, 2))[..., 0].float()
        if labels is None:
            return logits, None
        known = labels >= 0
        loss = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).float(), reduction="none")
        return logits, loss * known

    @torch.no_grad()
    def contacts(self, msa_ids: Tensor) -> Tensor:
        """The probability (B, L, L) of each contact."""
        return self.eval()(msa_ids)[0].sigmoid()


MODEL = Evoformer
