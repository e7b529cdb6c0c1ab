"""Counts of a model from its configuration alone: parameters, FLOPs, weight bytes, KV cache, optimizer states.

FLOPs follow Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, appendix B) and Kaplan et al. 2020 (arXiv 2001.08361): two
per token and weight of a matrix product, plus those of attention. The memory of a training step is estimated in
`quatrain.planning.training_memory`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import nn

from quatrain.models.transformer import recurrence
from quatrain.models.transformer.cache_forms import kv_bytes
from quatrain.models.transformer.config import ATTENTION_LAYERS, RECURRENT_LAYERS, ModelConfig
from quatrain.models.transformer.experts import MixtureOfExperts, Router
from quatrain.models.transformer.positions import log_buckets

if TYPE_CHECKING:
    from quatrain.models.transformer.stack import Model

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
"""Bytes of one element."""
WEIGHT_BITS = {name: 8 * size for name, size in BYTES.items()} | {"int4": 4}
"""Bits of a weight, without the scales of quantized ones."""

STATE_BLOCK, STATE_LEAST = 256, 4096
"""8-bit AdamW: values that share a scale; elements from which on a tensor has 8-bit states."""


Count = TypeVar("Count", int, np.ndarray)


def state_bytes(elements: int, optimizer: str = "adamw") -> int:
    """Bytes of the optimizer states of one tensor: `adamw`, `adamw8bit` (two moments), `muon` (one), `sgd` (none)."""
    if optimizer == "sgd":
        return 0 * elements
    if optimizer == "muon":
        return 4 * elements
    if optimizer == "adamw8bit" and elements >= STATE_LEAST:
        return 2 * (elements + 4 * -(-elements // STATE_BLOCK))
    return 8 * elements


def built(config: ModelConfig) -> Model:
    """The network of a configuration on the meta device: shapes without data."""
    from quatrain.models.transformer.initialization import Uninitialized
    from quatrain.models.transformer.stack import Model

    with torch.device("meta"), Uninitialized():
        return Model(config)


def _counted(config: ModelConfig, count: Callable[[Model], Count]) -> Count:
    """Counts a model of one layer and of two, and extrapolates: layers of one shape (`layer_shape`) count alike.

    A count is a number, or an array of several.
    """

    if config.blocks:
        return count(built(config))

    def of(layers: Sequence[int], encoder_layers: int) -> Count:
        return count(built(config.with_layers(layers, num_encoder_layers=encoder_layers)))

    encoder_layers = config.num_encoder_layers
    least = min(encoder_layers, 1)
    total = start = of([0], least)
    shapes = [config.layer_shape(layer) for layer in range(config.num_hidden_layers)]
    for shape, number in Counter(shapes[1:]).items():
        layer = shapes.index(shape, 1)
        others: list[int] = sorted({0, config.kv_source(layer)} - {layer})
        total = total + number * (of([*others, layer], least) - of(others, least))
    if encoder_layers > 1:
        total = total + (encoder_layers - 1) * (of([0], 2) - start)
    return total


def _tables(model: Model) -> int:
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding))


def _multiplied(model: Model) -> int:
    matrices = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear | Router))
    if model.neighbours is not None:
        matrices += model.neighbours.conv.weight.numel()
    # A block that several layers share is passed several times.
    again = Counter(model.config.blocks) - Counter(range(len(model.layers)))
    for block, times in again.items():
        linears = (module for module in model.layers[block].modules() if isinstance(module, nn.Linear))
        matrices += times * sum(module.weight.numel() for module in linears)
    return matrices - _idle(model, lambda weight: weight.dim() > 1)


def _idle(model: Model, counts: Callable[[torch.Tensor], bool] = lambda _: True) -> int:
    """Elements of the experts that a token does not use, of weights that `counts` accepts."""
    mixtures = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    return sum(
        (len(mixture.experts) - mixture.gate.config.experts_per_token)
        * sum(weight.numel() for weight in mixture.experts[0].parameters() if counts(weight))
        for mixture in mixtures
    )


def parameters(config: ModelConfig) -> int:
    """Elements of all weights; a tied head counts once. Equal to the built model's."""
    return _counted(config, lambda model: model.num_parameters())


def active_parameters(config: ModelConfig) -> int:
    """Elements of the weights that a token uses: all, without the experts that it does not choose."""
    return _counted(config, lambda model: model.num_parameters() - _idle(model))


PARTS = {
    "embeddings": ("embed", "position", "wte", "wpe", "frontend"),
    "attention": ("attn", "attention", "relative"),
    "recurrence": ("mixer",),
    "experts": ("expert",),
    "feed-forward": ("mlp", "feed_forward"),
    "norms": ("norm",),
}
"""Parts of a network, by words in the names of their modules; the first that occurs in a name decides."""
LAYER_PARTS = ("attention", "recurrence", "feed-forward")
"""The parts that hold the matrices of a layer."""


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """Elements of the weights by part: embeddings, attention, experts, feed-forward, norms, head.

    Their sum is `parameters`.
    """
    names = (*PARTS, "head")
    found = _counted(config, lambda model: np.array([_elements(model)[part] for part in names], dtype=object))
    return {part: int(count) for part, count in zip(names, found, strict=True) if count}


def _elements(model: Model) -> Counter[str]:
    """Elements of the weights by part."""
    found: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        *modules, _ = name.split(".")
        words = [
            part for module in reversed(modules) for part, names in PARTS.items() if any(n in module for n in names)
        ]
        found[words[0] if words else "head"] += weight.numel()
    return found


def embedding_parameters(config: ModelConfig) -> int:
    """Elements of the embedding tables: tokens, learned positions, token types, relative distances."""
    return _counted(config, _tables)


def matmul_parameters(config: ModelConfig) -> int:
    """Elements of the matrices that a token is multiplied with: those of linear layers, with the head, tied or not.

    Embedding tables, norms, biases and the experts that a token does not choose are not counted. For an
    encoder-decoder: one token through the encoder and one through the decoder.
    """
    return _counted(config, _multiplied)


def flops_per_token(
    config: ModelConfig, context: int, training: bool = True, *, frozen: bool = False, windows: bool = True,
    texts: int = 1,
) -> float:  # fmt: skip
    """Floating-point operations of one token in a text of `context` tokens, those of matrix products.

    Forward: 2 N + 4 L H D T, with N the weights multiplied (`matmul_parameters`), L layers, H heads of width D and T
    the context, or the window of a sliding layer. The backward pass takes twice as much, so training is
    6 N + 12 L H D T. As in PaLM, causal attention is counted whole. An encoder-decoder reads and writes `context`
    tokens, and each decoder layer attends to both. `frozen` is for the training of an adapter: without the gradients of
    the frozen weights it takes 4 N instead of 6 N. `windows` = False counts what a kernel computes that masks the
    scores outside a window instead of leaving them out; `texts` are those of a batch. PyTorch's counter gives exactly
    these numbers.
    """
    weights = 2 * matmul_parameters(config) + recurrent_flops(config, context) + distance_flops(config, context, texts)
    spans = _spans(config, context)
    spans = spans if windows else [context] * len(spans)
    layers = [layer for layer, kind in enumerate(config.layer_types) if kind in ATTENTION_LAYERS]
    widths = [config.attention_sizes(layer)[1] for layer in layers]
    value_widths = widths if config.latent is None else [config.latent.value_dim] * len(layers)
    read = sum((key + value) * span for key, value, span in zip(widths, value_widths, spans, strict=True))
    attention = 2 * config.num_attention_heads * read
    if config.architecture == "encoder-decoder":
        encoder = config.encoder
        width = encoder.num_attention_heads * encoder.head_dim
        attention += 4 * context * (config.num_hidden_layers * config.num_attention_heads * config.head_dim)
        attention += 4 * context * encoder.num_hidden_layers * width
    if not training:
        return float(weights + attention)
    return float((2 if frozen else 3) * weights + 3 * attention)


def recurrent_flops(config: ModelConfig, context: int) -> float:
    """Forward FLOPs of one token in the chunked scans of recurrent layers: matrix products that have no weights.

    Not counted, as by PyTorch's counter: the triangular systems of a gated delta net.
    """
    if not config.recurs or not context:
        return 0.0
    chunk = min(recurrence.CHUNK, context)
    chunks, total = -(-context // chunk), 0
    groups, size = config.recurrent_groups, config.recurrent_state_size
    for kind, layers in Counter(kind for kind in config.layer_types if kind in RECURRENT_LAYERS).items():
        width, products, passes = config.recurrent_heads * config.recurrent_head_dim, 1, 2
        if kind == "mlstm":
            width += config.recurrent_heads  # the normalizer of each head
        if kind == "gated_delta":
            products, passes = 2, 3
        read = chunks * chunk * chunk * (products * groups * size + width)
        total += layers * (read + (chunks - 1) * chunk * passes * width * size)
    return 2 * total / context


def distance_flops(config: ModelConfig, context: int, texts: int = 1) -> float:
    """Forward FLOPs of one token in DeBERTa's scores between contents and distances.

    Both kinds of scores multiply each token with every distance of the text; the distances pass through the
    projections of queries and keys once for all `texts` of a batch.
    """
    distances = compared_distances(config, context)
    if not distances:
        return 0.0
    queries, keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    projected = config.hidden_size * (queries + keys) / (context * texts)
    return 2 * config.num_hidden_layers * distances * (2 * queries + projected)


def compared_distances(config: ModelConfig, context: int) -> int:
    """How many embedded distances DeBERTa's attention compares with each token of a text; 0 for other positions."""
    if config.position != "disentangled" or not context:
        return 0
    buckets = config.relative_buckets
    farthest = int(log_buckets(torch.tensor(context - 1), buckets, config.relative_max_distance))
    return min(buckets + farthest, 2 * buckets - 1) - max(buckets - farthest, 0) + 1


def is_planned(config: Any) -> bool:
    """Whether the formulas of transformers hold: models from before count their own operations."""
    return isinstance(config, ModelConfig)


def training_flops_per_token(config: Any, context: int) -> float:
    """Operations that learn from one token, of any model; a model from before the transformer counts its own."""
    if is_planned(config):
        return flops_per_token(config, context)
    own: float = config.flops_per_token(training=True)
    return own


def _spans(config: ModelConfig, context: int) -> list[int]:
    """How many tokens each layer attends to."""
    window = config.sliding_window or context
    return [min(context, window) if kind == "sliding" else context for kind in config.attention_layers]


def kv_cache_bytes(
    config: ModelConfig, context: int, batch_size: int = 1, dtype: str = "float32", *, windows: int = 2
) -> int:
    """Bytes of the KV cache for `batch_size` texts of `context` tokens; `dtype` may be "int8" or "int4" too, with their
    scales.

    A sliding layer caches `windows` times its window: 2 in our engine, which moves the cache once a window; 1 is the
    least that the architecture needs. An encoder-decoder also caches the keys and values of an encoded text of
    `context` tokens. A recurrent layer has a state in float32 instead, of the same size for every context.
    """
    keys_and_values = kv_bytes(config, context, dtype, windows=windows)
    if config.architecture == "encoder-decoder":
        keys_and_values += kv_bytes(
            config.replace(sliding_window=None, layer_types=()), context, dtype, windows=windows
        )
    return batch_size * (keys_and_values + recurrence.state_bytes(config))


def weight_bytes(config: ModelConfig, dtype: str = "float32") -> int:
    """Bytes of all weights in one dtype."""
    return parameters(config) * WEIGHT_BITS[dtype] // 8
