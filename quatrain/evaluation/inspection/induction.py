"""Induction heads: attention heads that continue a repeated sequence (Olsson et al. 2022, arXiv 2209.11895).

On random tokens that are repeated, such a head looks from a token to the one that came after its last occurrence
(prefix matching) and raises the probability of the token that it looks at (copying).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quatrain.core.errors import InputError
from quatrain.models.transformer.attention import Attention
from quatrain.models.transformer.context import Trace
from quatrain.models.transformer.stack import Model


@dataclass(frozen=True)
class InductionScores:
    """The scores of each head, (L, H).

    prefix_matching: the share of attention, from 0 to 1, that goes from the second copy of a token to the token after
    the first copy. previous_token: the share that goes to the token before, which an induction head needs below it.
    copying, from -1 to 1: the sum of the eigenvalues of the head's path from embedding to logits over the sum of their
    absolute values (Elhage et al. 2021, "A mathematical framework for transformer circuits"); 1 where what a head reads
    it makes likelier. `loss_first` and `loss_second`: the mean loss, in nats, in the two copies.
    """

    prefix_matching: Tensor
    previous_token: Tensor
    copying: Tensor
    loss_first: float
    loss_second: float
    length: int

    def strongest(self, count: int = 5) -> list[tuple[int, int]]:
        """The heads (layer, head) with the highest prefix-matching scores, highest first."""
        order = self.prefix_matching.flatten().argsort(descending=True)[:count].tolist()
        return [divmod(place, self.prefix_matching.shape[1]) for place in order]

    def as_dict(self) -> dict[str, Any]:
        tensors = {name: getattr(self, name).tolist() for name in ("prefix_matching", "previous_token", "copying")}
        losses = {"loss_first": self.loss_first, "loss_second": self.loss_second, "length": self.length}
        return losses | tensors


@torch.no_grad()
def induction_scores(
    model: Model, *, length: int = 32, sequences: int = 8, seed: int = 0, exclude: frozenset[int] = frozenset()
) -> InductionScores:
    """The scores on `sequences` of `length` random tokens, each repeated once.

    `exclude` are ids that are not drawn, such as special tokens. Raises InputError for a model that is no decoder, and
    where the repeated sequence exceeds the context.
    """
    config = model.config
    if config.architecture != "decoder" or config.head != "causal":
        raise InputError("Induction heads predict the next token: this needs a causal decoder.")
    if config.has_position_limit and 2 * length > config.context_length:
        length = config.context_length // 2
    if length < 2:
        raise InputError(f"length: {length}; a sequence to repeat needs at least 2 tokens, and room for both copies")
    generator = np.random.default_rng(seed)
    known = np.array([each for each in range(config.vocab_size) if each not in exclude])
    once = torch.from_numpy(generator.choice(known, (sequences, length)))
    ids = torch.cat((once, once), dim=1).to(model.device)
    trace = Trace()
    hidden = model.hidden_states(ids, trace=trace)
    losses = torch.nn.functional.cross_entropy(
        model.lm_logits(hidden[:, :-1]).float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    ).view(sequences, -1)
    prefix, previous = [], []
    for weights in trace.attentions:  # (B, H, T, T)
        mapped = weights.float().mean(0)[:, -2 * length :, -2 * length :]
        prefix.append(mapped.diagonal(1 - length, 1, 2)[:, 1:].mean(-1).cpu())
        previous.append(mapped.diagonal(-1, 1, 2).mean(-1).cpu())
    first, second = losses[:, : length - 1].mean(), losses[:, length:].mean()
    return InductionScores(
        torch.stack(prefix), torch.stack(previous), copying_scores(model), float(first), float(second), length
    )


def copying_scores(model: Model) -> Tensor:
    """The copying score (L, H) of each head: sum of eigenvalues over sum of their absolute values, 0 for none.

    The eigenvalues of embedding → values → output → logits (V × V, of rank head_dim) are those of a matrix of
    head_dim × head_dim. Norms and biases are left out, but for the scale of the weights of norms.
    """
    embedding = _matrix(model.embed_tokens)
    head = model.lm_head
    if head is None:
        raise InputError(f"The head {model.config.head} predicts no token.")
    unembedding = _matrix(head)
    # hidden_size × hidden_size: what a direction of the logits' space says of the embedding's.
    through = embedding.T @ unembedding
    scale = _norm_scale(model.norm, unembedding.shape[1])
    projected_in = None if model.project_in is None else _matrix(model.project_in)
    projected_out = None if model.project_out is None else _matrix(model.project_out)
    scores = []
    for place, layer in enumerate(model.layers):
        attention: Any = layer.self_attn
        if not isinstance(attention, Attention):
            continue
        into = _norm_scale(getattr(layer, "input_layernorm", None), attention.q_proj.in_features)
        source: Any = model.layers[getattr(attention, "source", place)].self_attn  # It may use another layer's values.
        projection = source.k_proj if source.v_proj is None else source.v_proj
        values = _matrix(projection).view(attention.num_kv_heads, attention.head_dim, -1)
        outputs = _matrix(attention.o_proj).view(-1, attention.num_heads, attention.head_dim)
        own = []
        for number in range(attention.num_heads):
            value = values[number * attention.num_kv_heads // attention.num_heads] * into
            output = outputs[:, number]
            value = value if projected_in is None else value @ projected_in
            output = output if projected_out is None else projected_out @ output
            output = output * scale[:, None] if len(scale) == len(output) else output
            eigenvalues = torch.linalg.eigvals(value @ through @ output)
            total = float(eigenvalues.abs().sum())
            own.append(float(eigenvalues.real.sum()) / total if total else 0.0)
        scores.append(torch.tensor(own))
    return torch.stack(scores)


def _matrix(layer: nn.Module) -> Tensor:
    """The weights (out, in) of a linear layer of any kind, quantized or adapted, or the rows of an embedding."""
    if isinstance(layer, nn.Embedding | nn.Linear):
        return layer.weight.detach().double().cpu()
    size: Any = layer.in_features
    weights = next(each for each in (*layer.parameters(), *layer.buffers()) if each.is_floating_point())
    with torch.no_grad():
        zero = torch.zeros(1, size, device=weights.device)
        columns = layer(torch.eye(size, device=weights.device)) - layer(zero)
    return columns.T.double().cpu()


def _norm_scale(norm: nn.Module | None, size: int) -> Tensor:
    """The weights of a norm; ones for a norm without, and for none."""
    weight = getattr(norm, "weight", None)
    if weight is None:
        return torch.ones(size, dtype=torch.float64)
    offset: Any = getattr(norm, "offset", 0.0)
    return weight.detach().double().cpu() + offset
