"""Attention weights of a text by layer and head, with a numerical summary of each head.

A map shows where information can flow, not why a model gives its output (Jain & Wallace 2019, arXiv 1902.10186).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from quatrain.core.errors import InputError
from quatrain.evaluation.inspection.predictions import decoder_start
from quatrain.evaluation.inspection.tokens import Token, check_ids, tokens
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.context import Trace
from quatrain.models.transformer.stack import Model

if TYPE_CHECKING:
    from quatrain.tokenizers.tokenizer import Tokenizer

MOST_CELLS = 12_000_000
"""Most attention weights, over all maps, that one page shows."""
NAMES = {"decoder": "The decoder", "encoder": "The encoder", "cross": "The decoder over the encoder"}


@dataclass(frozen=True)
class AttentionMaps:
    """All maps of one kind: self-attention ("decoder", "encoder") or cross-attention ("cross").

    weights (L, H, T, S): row t, which sums to 1, is how the query token t spreads its attention over the key tokens.
    """

    kind: str
    queries: tuple[Token, ...]
    keys: tuple[Token, ...]
    weights: Tensor

    @property
    def name(self) -> str:
        return NAMES[self.kind]

    @property
    def layers(self) -> int:
        return self.weights.shape[0]

    @property
    def heads(self) -> int:
        return self.weights.shape[1]

    def habits(self, layer: int, head: int) -> dict[str, float]:
        """The mean share of a head's attention that goes to each relative position, largest first.

        The positions are the first token and, for self-attention, the token itself, the previous token and, in an
        encoder, the next token. The first token is not counted again as one of the others.
        """
        weights = self.weights[layer, head]
        shares = {"the first token": float(weights[1:, 0].mean()) if len(weights) > 1 else float(weights[0, 0])}
        if self.kind != "cross" and len(weights) > 2:
            rest = weights[2:, 1:]
            shares["itself"] = float(rest.diagonal(1).mean())
            shares["the one before"] = float(rest.diagonal(0).mean())
            if self.kind == "encoder":
                shares["the one after"] = float(weights[1:-1, 2:].diagonal(0).mean())
        return dict(sorted(shares.items(), key=lambda item: -item[1]))


def attention_maps(
    model: Model,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    *,
    answer: Sequence[int] = (),
    target_tokenizer: Tokenizer | None = None,
    adapter: str | None = None,
) -> tuple[AttentionMaps, ...]:
    """The attention maps of the text `ids`; for an encoder-decoder also cross-attention.

    The decoder of an encoder-decoder reads its start token and `answer`. `target_tokenizer` is the tokenizer of the
    answer if it differs; `adapter` is the one to use, of a model with several. Raises InputError if a page of all maps
    would be too large, and for a model without attention.
    """
    if not model.config.attends:
        raise InputError(f"A {model.config.family} model has no attention: its layers are recurrent.")
    if model.encoder is None:
        check_ids(ids, tokenizer, model.config)
    limit, longest = drawable(model.config), max(len(ids), len(answer) + 1)
    if longest > limit:
        raise InputError(f"{longest:,} tokens: maps of at most {limit:,} can be drawn here. Shorten the text.")
    trace = Trace()
    read = tokens(tokenizer, ids)
    batch = torch.tensor([list(ids)], device=model.device)
    adapters = None if model.adapter_set is None else [adapter]
    with torch.no_grad():
        if model.encoder is None:
            model.hidden_states(batch, trace=trace, adapters=adapters)
            return (_maps(model.config.architecture, read, read, trace.attentions),)
        decoder_ids = [decoder_start(model.config), *answer]
        decoder_batch = torch.tensor([decoder_ids], device=model.device)
        model.hidden_states(batch, decoder_input_ids=decoder_batch, trace=trace, adapters=adapters)
    written = tokens(target_tokenizer or tokenizer, decoder_ids)
    return (
        _maps("encoder", read, read, trace.encoder_attentions),
        _maps("decoder", written, written, trace.attentions),
        _maps("cross", written, read, trace.cross_attentions),
    )


def _maps(kind: str, queries: tuple[Token, ...], keys: tuple[Token, ...], weights: list[Tensor]) -> AttentionMaps:
    return AttentionMaps(kind, queries, keys, torch.stack([each[0].float().cpu() for each in weights]))


def drawable(config: ModelConfig) -> int:
    """The length of the longest text whose maps fit on one page, in tokens."""
    maps = max(1, len(config.attention_layers) * config.num_attention_heads)
    if config.architecture == "encoder-decoder":
        maps = 2 * maps + config.num_encoder_layers * (config.encoder_attention_heads or config.num_attention_heads)
    return max(2, int((MOST_CELLS / maps) ** 0.5))
