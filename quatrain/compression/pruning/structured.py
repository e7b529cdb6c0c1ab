"""Removes whole attention heads, feed-forward units and layers: the result is an ordinary smaller model, and faster.

- Heads and units by what they contribute to the residual stream on calibration texts (as in Michel et al. 2019, arXiv
  1905.10650, and FLAP, An et al. 2023, arXiv 2312.11983). What is kept can take over what is removed by least squares
  on the same texts (as in the optimal brain surgeon for structures, Kurtic et al. 2023, arXiv 2302.04089).
- Layers by how much they turn the hidden state: 1 - cos(before, after) (ShortGPT, Men et al. 2024, arXiv 2403.03853).
  `every second` layer is DistilBERT's start (Sanh et al. 2019, arXiv 1910.01108).

Every layer loses as many heads and units, since a model's configuration has one number for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quatrain.compression.calibration import CalibratedBlock, Inputs, LayerInputs, block_linears, calibrated_blocks
from quatrain.core.errors import InputError
from quatrain.models.families import get_family
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.stack import Model

DAMPING = 0.01
"""Added to the diagonal of the second moments, as a share of its mean, in the least squares."""


@dataclass(frozen=True)
class Kept:
    """What stays: `heads` and `units` of each remaining layer, and the numbers of these `layers`.

    Heads are numbers of key/value heads, each with the query heads that share it. None: all.
    """

    layers: tuple[int, ...]
    heads: tuple[tuple[int, ...], ...] | None = None
    units: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class Shares:
    """The shares of key/value heads, feed-forward units and layers to remove, each at least 0 and below 1."""

    heads: float = 0.0
    units: float = 0.0
    layers: float = 0.0

    def problems(self) -> list[str]:
        """The values out of range, and shares that are all 0."""
        found = [
            f"{name}: {share}; must be at least 0 and below 1, such as 0.25"
            for name, share in vars(self).items()
            if not 0 <= share < 1
        ]
        return found if found or any(vars(self).values()) else ["heads, units, layers: name at least one share"]


def prune(
    model: Model,
    batches: Sequence[Inputs],
    *,
    heads: float = 0.0,
    units: float = 0.0,
    layers: float = 0.0,
    compensate: bool = True,
    alternate: bool = False,
) -> tuple[Model, Kept]:
    """A smaller model without the least important shares of heads, units and layers, and what was kept of the first.

    `batches` are calibration texts, arguments of `Model.hidden_states`. `compensate` corrects the output projections of
    what is kept by least squares. `alternate` keeps layers at even distances, not the most important ones; without
    heads and units it reads no texts. The given model is not changed. Raises InputError, with all problems, for shares
    out of range and for families whose files have no place for the new sizes.
    """
    shares = Shares(heads, units, layers)
    problems = shares.problems() or _structure_problems(model, shares)
    if problems:
        raise InputError("This model cannot be made smaller so:", problems)
    config = model.config
    if alternate and not heads and not units:
        kept = Kept(_evenly(config.num_hidden_layers, _rest(config.num_hidden_layers, layers)))
        return smaller(model, kept), kept
    found = [_importance(block, config, shares) for block in calibrated_blocks(model, batches)]
    wanted = _rest(config.num_hidden_layers, layers)
    if alternate:
        places = _evenly(config.num_hidden_layers, wanted)
    else:
        places = _largest(torch.tensor([each.turn for each in found]), wanted)
    kept = Kept(
        places,
        _each([found[place].heads for place in places], heads),
        _each([found[place].units for place in places], units),
    )
    outputs = [found[place].inputs for place in places] if compensate else None
    return smaller(model, kept, outputs), kept


@dataclass
class _Importance:
    """Of one block: the importance of heads and units, how much it turns its input, and the inputs of its outputs.

    Heads and units, and the inputs, only where a share of them is removed: recurrent layers have none.
    """

    heads: Tensor
    units: Tensor
    turn: float
    inputs: dict[str, LayerInputs]


@torch.no_grad()
def _importance(block: CalibratedBlock, config: ModelConfig, shares: Shares) -> _Importance:
    ends = {"self_attn.o_proj": shares.heads, "mlp.down_proj": shares.units}
    inputs = {end: block.inputs[f"{block.name}.{end}"] for end, share in ends.items() if share}
    heads = units = torch.empty(0)
    # The energy of what a channel adds: its column's norm times its input's; a head is summed with its correlations.
    if shares.heads:
        attention: Any = block.block.self_attn
        weight = attention.o_proj.weight.float()
        energy = (weight.T @ weight) * inputs["self_attn.o_proj"].gram
        size = config.num_attention_heads // config.num_key_value_heads * config.head_dim
        heads = torch.stack([part.sum() for part in _diagonal_parts(energy, size)])
    if shares.units:
        mlp: Any = block.block.mlp
        units = mlp.down_proj.weight.float().square().sum(0) * inputs["mlp.down_proj"].gram.diagonal()
    turned = [
        1 - F.cosine_similarity(before.float(), after.float(), dim=-1).mean()
        for before, after in zip(block.states, block.outputs(), strict=True)
    ]
    return _Importance(heads, units, float(torch.stack(turned).mean()), inputs)


def _diagonal_parts(matrix: Tensor, size: int) -> list[Tensor]:
    return [matrix[start : start + size, start : start + size] for start in range(0, len(matrix), size)]


def _rest(count: int, share: float) -> int:
    return max(1, count - round(count * share))


def _largest(scores: Tensor, count: int) -> tuple[int, ...]:
    return tuple(sorted(scores.argsort(descending=True, stable=True)[:count].tolist()))


def _evenly(count: int, wanted: int) -> tuple[int, ...]:
    """Numbers at even distances, the first and the last among them."""
    if wanted == 1:
        return (count - 1,)
    return tuple(round(place * (count - 1) / (wanted - 1)) for place in range(wanted))


def _each(scores: list[Tensor], share: float) -> tuple[tuple[int, ...], ...] | None:
    return tuple(_largest(each, _rest(len(each), share)) for each in scores) if share else None


def _structure_problems(model: Model, shares: Shares) -> list[str]:
    """Models whose parts cannot be removed."""
    config, problems = model.config, []
    if config.architecture == "encoder-decoder":
        problems.append(f"{config.family}: an encoder-decoder; only encoders and decoders are made smaller")
    if config.experts is not None or config.latent is not None:
        problems.append(f"{config.family}: has experts or latent attention; only dense models are made smaller")
    if config.shared_kv_layers or config.full_head_dim or config.layer_embedding_size:
        problems.append(
            f"{config.family}: its layers differ, share keys or have embeddings of their own; none is removed"
        )
    if not all(isinstance(module, nn.Linear) for module in block_linears(model).values()):
        problems.append("the model is quantized or has adapters: prune it before quantizing it, and merge adapters")
    if (shares.heads or shares.units) and (config.recurs or config.feed_forward == "none"):
        problems.append(f"heads and units: {config.family} has recurrent layers, which are only removed whole")
    if shares.heads and config.position in ("alibi", "relative"):
        problems.append(f"heads: the {config.position} positions of {config.family} are bound to the number of a head")
    if shares.heads and config.query_key_norm in ("whole", "each_head"):
        problems.append(f"heads: {config.family} normalizes queries and keys with weights that differ between heads")
    if config.blocks:
        problems.append(f"{config.family}: its layers share weights, so that none can be removed")
    if shares.layers and config.attention_scale_by_layer != "constant":
        problems.append(f"layers: the attention of {config.family} is scaled by the number of a layer")
    if problems or config.recurs:
        return problems
    count = len(_largest(torch.zeros(config.num_key_value_heads), _rest(config.num_key_value_heads, shares.heads)))
    sized = _config(config, _rest(config.num_hidden_layers, shares.layers), count,
                    _rest(config.intermediate_size, shares.units))  # fmt: skip
    family = get_family(config.family)
    try:
        written = family.from_hf(family.to_hf(sized), head=config.head)
    except InputError as error:
        return [f"{config.family}: its files cannot hold the smaller model: {error}"]
    return [
        f"{config.family}: its files have no place for another {name} ({getattr(sized, name)}), they mean "
        f"{getattr(written, name)}"
        for name in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
        if getattr(written, name) != getattr(sized, name)
    ]


def _config(config: ModelConfig, layers: int, kv_heads: int, units: int) -> ModelConfig:
    shared = config.num_attention_heads // max(config.num_key_value_heads, 1)  # Recurrent models may have neither.
    return config.with_layers(
        range(layers),
        num_attention_heads=kv_heads * shared,
        num_key_value_heads=kv_heads,
        head_dim=config.head_dim,
        intermediate_size=units,
    )


@torch.no_grad()
def smaller(model: Model, kept: Kept, outputs: Sequence[dict[str, LayerInputs]] | None = None) -> Model:
    """The model with only the kept layers, heads and units.

    `outputs`: for each kept layer the inputs' statistics of `self_attn.o_proj` and `mlp.down_proj`, for which these
    projections are corrected; None: they lose columns, and the model computes what it did with zeros in their place.
    """
    config = model.config
    heads = config.num_key_value_heads if kept.heads is None else len(kept.heads[0])
    units = config.intermediate_size if kept.units is None else len(kept.units[0])
    sized = _config(config.with_layers(kept.layers), len(kept.layers), heads, units)
    small = Model(sized)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("layers.")}
    for number, layer in enumerate(kept.layers):
        own = model.layers[layer].state_dict()
        statistics = None if outputs is None else outputs[number]
        if kept.heads is not None:
            _cut_heads(own, config, kept.heads[number], statistics)
        if kept.units is not None:
            columns = torch.tensor(kept.units[number])
            for name in ("gate_proj", "up_proj"):
                _take_rows(own, f"mlp.{name}", columns)
            _take_columns(own, "mlp.down_proj", columns, statistics)
        tensors |= {f"layers.{number}.{name}": tensor for name, tensor in own.items()}
    small.load_state_dict(tensors)
    small.generation_config, small.untied_after_load = model.generation_config, model.untied_after_load
    return small.to(device=model.device, dtype=model.embed_tokens.weight.dtype).train(model.training)


def _cut_heads(
    tensors: dict[str, Tensor], config: ModelConfig, heads: tuple[int, ...], statistics: dict[str, LayerInputs] | None
) -> None:
    chosen, shared = torch.tensor(heads), config.num_attention_heads // config.num_key_value_heads
    of_keys = (chosen[:, None] * config.head_dim + torch.arange(config.head_dim)).flatten()
    width = shared * config.head_dim
    of_queries = (chosen[:, None] * width + torch.arange(width)).flatten()
    _take_rows(tensors, "self_attn.q_proj", of_queries)
    for name in ("k_proj", "v_proj"):
        _take_rows(tensors, f"self_attn.{name}", of_keys)
    _take_columns(tensors, "self_attn.o_proj", of_queries, statistics)


def _take_rows(tensors: dict[str, Tensor], layer: str, rows: Tensor) -> None:
    for end in ("weight", "bias"):
        if f"{layer}.{end}" in tensors:
            tensors[f"{layer}.{end}"] = tensors[f"{layer}.{end}"][rows]


def _take_columns(
    tensors: dict[str, Tensor], layer: str, columns: Tensor, statistics: dict[str, LayerInputs] | None
) -> None:
    """Keeps columns (K,) of a weight W (out, in). With statistics the kept ones become W G[:, K] G[K, K]^-1."""
    weight = tensors[f"{layer}.weight"]
    if statistics is None:
        tensors[f"{layer}.weight"] = weight[:, columns]
        return
    gram = statistics[layer].gram
    own = gram[columns][:, columns]
    own.diagonal().add_(DAMPING * float(own.diagonal().mean()))
    # Corrections are added to the columns: what no text shows stays as it was.
    others = torch.ones(weight.shape[1], dtype=torch.bool)
    others[columns] = False
    correction = torch.linalg.solve(own, gram[columns][:, others] @ weight.float()[:, others].T).T
    tensors[f"{layer}.weight"] = weight[:, columns] + correction.to(weight.dtype)
