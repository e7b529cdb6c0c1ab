"""The one transformer stack: embedding, blocks of attention and feed-forward with residuals, final norm, head.

Every family is this stack under another configuration (`quatrain.models.families`). Parameter names follow
Hugging Face's Llama.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.errors import InputError
from quatrain.models import kernels
from quatrain.models.attention import Attention, Sight, bias_of, causal_mask
from quatrain.models.cache import KVCache
from quatrain.models.config import ModelConfig
from quatrain.models.feed_forward import FeedForward
from quatrain.models.norms import make_norm
from quatrain.models.positions import rotary_tables

IGNORE = -100
"""The label of a position where nothing is learned."""


class Block(nn.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = FeedForward(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor, sight: Sight) -> Tensor:
        """x (B, T, hidden_size) to the same shape."""
        x = x + self._drop(self.self_attn(self.input_layernorm(x), sight))
        return x + self._drop(self.mlp(self.post_attention_layernorm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Model(nn.Module):
    """A decoder-only language model: `model(x, y) -> (logits (B, T, V), loss (B, T))`.

    `labels[b, t]` is what the model should say after reading `input_ids[b, : t + 1]`: labels come shifted,
    with -100 where nothing is learned. The loss is per token and unreduced, in nats, 0 where the label is -100.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = (
            nn.Embedding(config.max_position_embeddings, config.hidden_size) if config.position == "learned" else None
        )
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = make_norm(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self._rotary: tuple[Tensor, Tensor] | None = None

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Reads input_ids (B, T) and returns logits (B, T, V) and, given labels (B, T), the loss (B, T).

        positions (B, T): 0, 1, … by default, going on after the cache. segments (B, T): tokens of one segment
        see each other only; 0 is padding. A cache is read and extended.
        Raises InputError where the text is longer than the model's context.
        """
        hidden = self.hidden_states(input_ids, positions=positions, segments=segments, cache=cache)
        logits = self.lm_head(hidden)
        if labels is None:
            return logits, None
        loss = F.cross_entropy(
            logits.view(-1, logits.shape[-1]).float(), labels.reshape(-1), ignore_index=IGNORE, reduction="none"
        )
        return logits, loss.view(labels.shape)

    def hidden_states(
        self,
        input_ids: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """The last hidden states (B, T, hidden_size), after the final norm."""
        length = input_ids.shape[1]
        past = cache.length if cache is not None else 0
        self._check_length(past + length if positions is None else None, past, length)
        slots = cache.write_segments(segments, length) if cache is not None else segments
        mask = self._mask(slots, past, length, input_ids.device)
        x = self.embed_tokens(input_ids)
        if self.embed_positions is not None:
            if positions is None:
                positions = torch.arange(past, past + length, device=input_ids.device)
            x = x + self.embed_positions(positions)
        rotary = self._rotary_at(positions, past, length, x) if self.embed_positions is None else None
        sight = Sight(rotary, mask, self._bias(mask, x) if cache is None else None, cache)
        x = F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x
        for layer in self.layers:
            x = layer(x, sight)
        if cache is not None:
            cache.advance(length)
        return self.norm(x)

    def _check_length(self, total: int | None, past: int, length: int) -> None:
        limit = self.config.max_position_embeddings
        if total is not None and total > limit:
            raise InputError(
                f"This text has {total} tokens ({past} before, {length} new); the model reads {limit}. "
                "Shorten the text, ask for truncation, or use a model with a longer context."
            )

    @staticmethod
    def _mask(segments: Tensor | None, past: int, length: int, device: torch.device) -> Tensor | None:
        if segments is not None:
            return causal_mask(segments, length)
        if past and length > 1:
            return causal_mask(torch.ones(1, past + length, dtype=torch.long, device=device), length)
        return None

    def _bias(self, mask: Tensor | None, x: Tensor) -> Tensor | None:
        """What the hand-written attention adds to its scores, where that pass suits; None where PyTorch's is taken."""
        batch, length, _ = x.shape
        if not kernels.suits(x) or batch * self.config.num_attention_heads * length * length > kernels.MAX_SCORES:
            return None
        return bias_of(mask, length, x.dtype, x.device)

    def _rotary_at(self, positions: Tensor | None, past: int, length: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of these positions in x's dtype; the tables of one device and dtype are kept."""
        if self._rotary is None or self._rotary[0].device != x.device or self._rotary[0].dtype != x.dtype:
            # Kept tables must serve training too, even where the first forward is in inference mode.
            with torch.inference_mode(False):
                cos, sin = rotary_tables(self.config, x.device)
                self._rotary = cos.to(x.dtype), sin.to(x.dtype)
        cos, sin = self._rotary
        if positions is None:
            return cos[past : past + length], sin[past : past + length]
        return cos[positions], sin[positions]

    def initialize(self, seed: int = 0) -> Model:
        """Draws fresh weights, as short runs like them best (K. Jordan et al., modded-nanogpt, 2024).

        Projections that read the residual stream are uniform within 1 / sqrt(inputs), those that write to it start at
        zero, so that each block begins as the identity. A head of its own starts at zero and its embedding at 0.5; an
        embedding that is tied to the head at 0.05, learned positions at initializer_range. Norms start at one.
        """
        generator = torch.Generator().manual_seed(seed)
        tied = self.config.tie_word_embeddings
        deviations = {
            "embed_tokens.weight": 0.05 if tied else 0.5,
            "lm_head.weight": 0.0,
            "embed_positions.weight": self.config.initializer_range,
        }
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() == 1:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                elif name in deviations:
                    parameter.copy_(
                        torch.empty(parameter.shape).normal_(0.0, 1.0, generator=generator) * deviations[name]
                    )
                elif name.endswith(("o_proj.weight", "down_proj.weight")):
                    parameter.zero_()
                else:
                    bound = parameter.shape[1] ** -0.5
                    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
        return self

    @property
    def device(self) -> torch.device:
        """Where the embedding lives."""
        return self.embed_tokens.weight.device

    def num_parameters(self, *, trainable: bool = False) -> int:
        """Elements of all distinct parameters (tied ones once), or of those that require a gradient."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not trainable)
