"""Compares the formulas of a plan with a small model of the same family: what it holds and what it computes.

The twin has the family's choices (norms, heads, gates, windows) and small sizes. Its weights, KV cache and optimizer
states are counted in bytes, its FLOPs by PyTorch's counter, and the activations that a layer saves for the backward
pass by autograd's own hooks. On a GPU the weights are measured by its allocator too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from quatrain.core.errors import InputError
from quatrain.models.transformer.config import LANGUAGE_HEADS, ExpertsConfig, ModelConfig
from quatrain.models.transformer.kv_cache import KVCache
from quatrain.models.transformer.stack import Model
from quatrain.planning import counts
from quatrain.planning.overview import ModelSize, Section
from quatrain.planning.parallelism import Layout, Step, layer_activation_bytes, state_memory

LIMIT = 0.15
"""Largest relative error that a row may have."""

HIDDEN, LAYERS, VOCABULARY, CONTEXT, ROWS = 256, 4, 1024, 128, 2


@dataclass(frozen=True)
class Row:
    """One figure of the formulas beside the measured one."""

    name: str
    planned: float
    measured: float
    unit: str

    @property
    def error(self) -> float:
        """(planned - measured) / measured."""
        return (self.planned - self.measured) / self.measured if self.measured else float(self.planned != 0)


def twin(config: ModelConfig) -> ModelConfig:
    """A small configuration with the choices of a large one: its norms, gates, ratio of heads and pattern of layers."""
    heads = min(config.num_attention_heads or config.recurrent_heads, 8)
    groups = max(1, heads * config.num_key_value_heads // (config.num_attention_heads or 1))
    while heads % groups:
        groups -= 1
    layers = min(config.num_hidden_layers, max(LAYERS, _period(config.layer_types)))
    width = max(2, HIDDEN // heads)
    changes: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_attention_heads": heads, "num_key_value_heads": groups,
        "head_dim": width,
        "intermediate_size": max(8, round(HIDDEN * config.intermediate_size / config.hidden_size / 8) * 8)
        if config.intermediate_size else 0,
        "max_position_embeddings": 2 * CONTEXT, "rope_scaling": None, "local_rope_scaling": None, "rotary_dim": 0,
        "embedding_size": 0 if config.embedding_size in (0, config.hidden_size) else HIDDEN // 2, "dropout": 0.0,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "decoder_start_token_id": 0,
        "attention_scale": None, "query_growth": 0.0, "head": _head(config),
    }  # fmt: skip
    if not config.attends:
        changes |= {"num_attention_heads": 0, "num_key_value_heads": 0, "head_dim": 0}
    if config.recurs:
        inner = config.recurrent_heads * config.recurrent_head_dim * HIDDEN // config.hidden_size
        changes |= {"recurrent_heads": heads, "recurrent_head_dim": max(2, inner // heads),
                    "recurrent_state_size": min(config.recurrent_state_size, 32),
                    "recurrent_groups": heads if config.recurrent_groups == config.recurrent_heads else 1}  # fmt: skip
    if config.sliding_window is not None:
        changes["sliding_window"] = CONTEXT // 4
    changes |= {
        "full_head_dim": 2 * width * bool(config.full_head_dim),
        "layer_vocab_size": 0,
        "full_key_value_heads": groups * bool(config.full_key_value_heads),
        "layer_embedding_size": 16 * bool(config.layer_embedding_size),
        "shared_kv_intermediate_size": 2 * changes["intermediate_size"] * bool(config.shared_kv_intermediate_size),
    }
    if config.latent is not None:
        rotated = max(2, width // 4 * 2)
        changes |= {"num_key_value_heads": heads, "rotary_dim": rotated, "latent": replace(
            config.latent, kv_rank=2 * width, query_rank=2 * width if config.latent.query_rank else 0,
            rope_dim=rotated, nope_dim=width - rotated, value_dim=width)}  # fmt: skip
    if config.experts is not None:
        changes["experts"] = _few_experts(config.experts, HIDDEN / config.hidden_size, layers)
    if config.architecture == "encoder-decoder":
        changes |= {"num_encoder_layers": layers, "encoder_attention_heads": heads,
                    "encoder_intermediate_size": changes["intermediate_size"]}  # fmt: skip
        if config.encoder_config is not None:
            smaller = twin(config.encoder_config)
            changes |= {"encoder_config": smaller, "num_encoder_layers": smaller.num_hidden_layers,
                        "encoder_vocab_size": VOCABULARY}  # fmt: skip
    else:
        del changes["decoder_start_token_id"]
    return config.with_layers(range(layers), **changes)


def _few_experts(experts: ExpertsConfig, ratio: float, layers: int) -> ExpertsConfig:
    """At most eight experts in one group, their widths times `ratio`."""
    count = min(experts.num_experts, 8)
    shared = experts.shared_intermediate_size
    return replace(
        experts, num_experts=count, experts_per_token=min(experts.experts_per_token, count), groups=1,
        groups_per_token=1, intermediate_size=max(8, round(experts.intermediate_size * ratio)),
        shared_intermediate_size=max(8, round(shared * ratio)) if shared else 0,
        dense_layers=tuple(layer for layer in experts.dense_layers if layer < layers),
    )  # fmt: skip


def _head(config: ModelConfig) -> str:
    if config.architecture == "encoder":
        return config.head if config.head in LANGUAGE_HEADS else "none"
    return "causal" if config.architecture == "decoder" else "seq2seq"


def _period(kinds: tuple[str, ...]) -> int:
    """Layers until the pattern of full and sliding layers repeats, at most 12."""
    return next((p for p in range(1, 13) if all(a == b for a, b in zip(kinds, kinds[p:], strict=False))), 12)


def compare(config: ModelConfig) -> Iterator[Row]:
    """The rows of the comparison for a small model of this family."""
    small = twin(config)
    with torch.device("cpu"):
        model = Model(small).initialize(seed=0)
    weights = list(model.parameters())
    yield Row("parameters", counts.parameters(small), model.num_parameters(), "")
    yield Row("bytes of weights", counts.weight_bytes(small), _bytes(weights), "B")
    tokens = torch.randint(0, VOCABULARY, (ROWS, CONTEXT), generator=torch.Generator().manual_seed(0))
    if small.architecture != "encoder":
        cache = KVCache(small, ROWS, CONTEXT)
        with torch.no_grad():
            _output(model, tokens, cache=cache)
        yield Row("bytes of the KV cache", counts.kv_cache_bytes(small, CONTEXT, ROWS), cache.nbytes, "B")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        model = model.to(device)
        held = torch.cuda.memory_allocated() - before
        yield Row("bytes of weights on the GPU", counts.weight_bytes(small), held, "B")
    tokens = tokens.to(device)
    read = ROWS * CONTEXT
    # The kernels of the small model mask the scores outside a window; they do not leave them out.
    planned = counts.flops_per_token(small, CONTEXT, training=False, windows=False, texts=ROWS) * read
    yield Row("FLOPs of a forward pass", planned, _flops(model, tokens, training=False), "FLOP")
    yield Row("FLOPs of a training step", 3 * planned, _flops(model, tokens, training=True), "FLOP")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    planned = state_memory(counts.parameters(small), Step(precision="float32"), Layout())[2]
    yield Row("bytes of AdamW's states", planned, _bytes(states), "B")
    estimated = small.experts is not None or small.latent is not None  # without what small tensors save
    if small.architecture != "encoder-decoder" and not estimated:
        yield _activations(small, tokens)


def _activations(config: ModelConfig, tokens: Tensor) -> Row:
    """What two further layers save for the backward pass, beside the formula."""
    kind = "full" if config.layer_types[0] == "sliding" else config.layer_types[0]
    one, three = (config.with_layers([0] * count).replace(layer_types=(kind,) * count) for count in (1, 3))
    few, more = (_saved(Model(each).initialize(0), tokens) for each in (one, three))
    fused = config.feed_forward == "gated" and config.activation == "silu"  # as the CPU's kernels do
    step = Step(micro_batch=ROWS, context=CONTEXT, precision="float32", flash=False, fused_gate=fused)
    return Row("bytes that a layer saves", layer_activation_bytes(one, step), (more - few) / 2, "B")


def _saved(model: Model, tokens: Tensor) -> int:
    """Bytes of the distinct tensors that a forward pass saves, without weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    saved: dict[int, int] = {}
    kept = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # a freed address would be counted once for two tensors
        return tensor

    model = model.to(tokens.device)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        _output(model, tokens).sum()
    return sum(saved.values())


def _output(model: Model, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
    both = model.config.architecture == "encoder-decoder"
    output = model(tokens, decoder_input_ids=tokens, cache=cache)[0] if both else model(tokens, cache=cache)[0]
    return output[0] if isinstance(output, tuple) else output


def _flops(model: Model, tokens: Tensor, *, training: bool) -> int:
    """FLOPs by PyTorch's counter. The forward pass is that of a training: the counter does not know the attention
    operation that PyTorch has on a CPU without gradients."""
    with FlopCounterMode(display=False) as counter:
        output = _output(model, tokens)
        if training:
            output.sum().backward()
    return counter.get_total_flops()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def verify_section(size: ModelSize) -> Section:
    """The comparison as a section: planned, measured, error. Raises InputError for a bare number of parameters."""
    if size.config is None:
        raise InputError("--verify: needs a model with its shapes; a bare size has none to build.")
    section = Section(f"the formulas beside a small {size.config.family} model (limit {LIMIT:.0%})", key="verify")
    rows = {row.name: row for row in compare(size.config)}
    for name, row in rows.items():
        verdict = "" if abs(row.error) <= LIMIT else ": beyond the limit"
        section.rows.append(
            [name, f"{row.planned:,.0f} {row.unit}".strip(), f"measured {row.measured:,.0f}, {row.error:+.1%}{verdict}"]
        )
        section.figures[name] = {"planned": row.planned, "measured": row.measured, "error": row.error}
    section.figures["within_limit"] = all(abs(row.error) <= LIMIT for row in rows.values())
    return section
