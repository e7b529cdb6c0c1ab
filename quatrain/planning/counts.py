"""What a model costs, from its configuration alone: parameters, operations, cache and training memory.

Operations follow Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, appendix B) and Kaplan et al. 2020
(arXiv 2001.08361): two for each weight of a matrix product and token, and those of attention.
"""

from __future__ import annotations

from dataclasses import dataclass

from quatrain.models.config import ModelConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
"""Bytes of one element."""


def block_parameters(config: ModelConfig) -> int:
    """Elements of one block: attention, feed-forward and its two norms."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    attention = 2 * hidden * query + 2 * hidden * kv
    attention += 0 if config.attention_bias == "none" else query + 2 * kv
    attention += hidden if config.attention_bias == "all" else 0
    wide = 2 if config.feed_forward == "gated" else 1
    feed_forward = (wide + 1) * hidden * inner
    feed_forward += (wide * inner + hidden) if config.feed_forward_bias else 0
    return attention + feed_forward + 2 * _norm_parameters(config)


def _norm_parameters(config: ModelConfig) -> int:
    return config.hidden_size * (1 if config.norm == "rms" else 2)


def embedding_parameters(config: ModelConfig) -> int:
    """Elements of the tables that are looked up, not multiplied: tokens, and learned positions."""
    positions = config.max_position_embeddings if config.position == "learned" else 0
    return (config.vocab_size + positions) * config.hidden_size


def parameters(config: ModelConfig) -> int:
    """Elements of all weights; a tied head counts once. Equal to the built model's."""
    head = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    blocks = config.num_hidden_layers * block_parameters(config)
    return embedding_parameters(config) + blocks + _norm_parameters(config) + head


def matmul_parameters(config: ModelConfig) -> int:
    """Weights that every token is multiplied with: all blocks and the head (tied or not), without embedding tables."""
    return config.num_hidden_layers * block_parameters(config) + config.vocab_size * config.hidden_size


def flops_per_token(config: ModelConfig, context: int, training: bool = True, *, frozen: bool = False) -> float:
    """Floating-point operations for one token in a text of `context` tokens.

    Forward: 2 N + 4 L H D T, with N the weights multiplied (head included, embedding tables not), L layers, H heads of
    width D and T the context. The backward pass takes twice as much, so training is 6 N + 12 L H D T.
    As in PaLM, causal attention is counted whole. `frozen` is training of an adapter: the gradients of the frozen
    weights are left out, 4 N in place of 6 N.
    """
    weights = 2 * matmul_parameters(config)
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * context
    if not training:
        return float(weights + attention)
    return float((2 if frozen else 3) * weights + 3 * attention)


def kv_cache_bytes(config: ModelConfig, context: int, batch_size: int = 1, dtype: str = "float32") -> int:
    """Bytes of the keys and values of `batch_size` texts of `context` tokens."""
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return per_token * context * batch_size * BYTES[dtype]


def weight_bytes(config: ModelConfig, dtype: str = "float32") -> int:
    """Bytes of all weights in one dtype."""
    return parameters(config) * BYTES[dtype]


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training step at its peak, by part; the activations are an estimate."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All parts together."""
        return self.weights + self.gradients + self.optimizer + self.activations


def training_memory(
    config: ModelConfig,
    batch_size: int,
    context: int,
    *,
    trainable: int | None = None,
    optimizer: str = "adamw",
    precision: str = "float32",
) -> TrainingMemory:
    """Memory of training with float32 weights, by part, for `batch_size` rows of `context` tokens a micro-batch.

    `trainable` elements have gradients and optimizer state: all by default. AdamW keeps two moments each, Muon one for
    the matrices of the blocks and AdamW's two for the rest. `precision` is that of the activations.
    """
    every = parameters(config)
    trained = every if trainable is None else trainable
    states = 2 * trained
    if optimizer == "muon" and trainable is None:
        vectors = 2 * _norm_parameters(config)
        states -= config.num_hidden_layers * (block_parameters(config) - vectors)
    return TrainingMemory(4 * every, 4 * trained, 4 * states, activation_bytes(config, batch_size, context, precision))


def activation_bytes(config: ModelConfig, batch_size: int, context: int, precision: str = "float32") -> int:
    """Bytes kept for the backward pass, an estimate by counting the tensors that the stack saves for each token.

    A block keeps each norm's input, normalised value and output, the rotated queries, keys, values and mixed heads,
    and the feed-forward's wide tensors; the head keeps the logits and their log-probabilities in float32.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    norms = 2 * 3 * hidden
    attention = 4 * query + query
    feed_forward = (4 if config.feed_forward == "gated" else 2) * inner
    tokens = batch_size * context
    blocks = config.num_hidden_layers * (norms + attention + feed_forward) + 3 * hidden
    return tokens * (blocks * BYTES[precision] + 2 * config.vocab_size * BYTES["float32"])
