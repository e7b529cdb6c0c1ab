"""The design choices of a configuration in words: what kind of transformer this is."""

from __future__ import annotations

from collections import Counter

from quatrain.models.transformer.config import LANGUAGE_HEADS, RECURRENT_LAYERS, ModelConfig
from quatrain.planning.counts import active_parameters, parameters

HEADS = {
    "causal": "the next token at every position",
    "masked": "the token at every mask",
    "replaced_tokens": "for each token whether it was replaced",
    "pretraining": "the token at every mask, and whether the second sentence follows the first",
    "next_sentence": "whether the second sentence follows the first",
    "seq2seq": "the next token of an answer, at every position of it",
    "sequence_classification": "a label for the text",
    "token_classification": "a label for every token",
    "question_answering": "where in the text an answer begins and ends",
    "multiple_choice": "a score for every choice",
    "image_classification": "a label for the picture",
    "distilled_classification": "a label for the picture, the mean of two classifiers",
    "contrastive": "how well each text describes each picture",
    "embedding": "one vector for the text",
    "value": "a value at every position",
    "none": "hidden states",
}
NORMS = {
    "rms": "RMSNorm",
    "rms_offset": "RMSNorm, times 1 + weight",
    "rms_without_parameters": "RMSNorm without parameters",
    "layer": "LayerNorm",
    "layer_without_bias": "LayerNorm without bias",
    "layer_without_parameters": "LayerNorm without parameters",
}
NORM_POSITIONS = {
    "pre": "before attention and feed-forward (pre-norm)",
    "post": "after each residual (post-norm)",
    "sandwich": "before and after attention and feed-forward (sandwich)",
    "output": "after attention and feed-forward (on their output)",
}
RECURRENCES = {"mamba2": "Mamba 2", "mlstm": "mLSTM", "gated_delta": "gated delta net"}
RESIDUALS = {
    "sequential": "sequential: attention, then feed-forward",
    "parallel": "parallel: attention and feed-forward of the same state, each behind its norm",
    "parallel_shared": "parallel: attention and feed-forward of the same state, behind one norm",
}
POOLINGS = {
    "first": "the first token",
    "last": "the last token",
    "eos": "the end token",
    "max": "the maximum of each channel",
    "mean": "the mean of all tokens",
    "mean_sqrt": "the sum of all tokens over the root of their number",
    "weighted_mean": "the mean of all tokens, weighed by their place",
}
ACTIVATIONS = {
    "silu": "SiLU",
    "gelu": "GELU",
    "gelu_tanh": "GELU (tanh)",
    "gelu_quick": "GELU (sigmoid)",
    "relu": "ReLU",
    "relu_squared": "ReLU squared",
    "tanh": "tanh",
}
GATED = {
    "silu": "SwiGLU",
    "gelu": "GEGLU",
    "gelu_tanh": "GEGLU (tanh)",
    "gelu_quick": "GEGLU (sigmoid)",
    "relu": "ReGLU",
    "relu_squared": "ReGLU (squared)",
    "tanh": "gated tanh",
}


def choices(config: ModelConfig) -> dict[str, str]:
    """Each design choice of the configuration, described in words; choices that do not apply are omitted."""
    layers = f"{config.num_hidden_layers}"
    if config.architecture == "encoder-decoder":
        layers = f"{config.num_encoder_layers} of the encoder, {layers} of the decoder"
    descriptions = {
        "architecture": config.architecture,
        "head": f"{config.head}: gives {HEADS.get(config.head, config.head)}",
        "layers": f"{layers}; {config.hidden_size:,} wide",
        "vocabulary": _vocabulary(config),
        "position": _position(config),
        "norm": f"{NORMS.get(config.norm, config.norm)}, {_norm_position(config)}, epsilon {config.norm_eps:g}",
        "residual": RESIDUALS.get(config.residual, config.residual)
        + ("" if config.residual_scale == 1.0 else f", each sublayer times {config.residual_scale:g}"),
        "attention": _attention(config),
        "recurrence": _recurrence(config),
        "window": _window(config),
        "feed-forward": _feed_forward(config),
        "experts": _experts(config),
        "logits": _logits(config),
        "pooling": _pooling(config),
        "labels": _labels(config),
    }
    return {name: words for name, words in descriptions.items() if words}


def _norm_position(config: ModelConfig) -> str:
    words = NORM_POSITIONS.get(config.norm_position, config.norm_position)
    if not config.first_norm:
        words += ", none before the first attention"
    return words if config.final_norm or config.norm_position == "post" else f"{words}, none behind the last layer"


def _vocabulary(config: ModelConfig) -> str:
    parts = [f"{config.vocab_size:,} tokens"]
    if config.embedding_size and config.embedding_size != config.hidden_size:
        parts.append(f"embedded {config.embedding_size:,} wide and projected")
    if config.embedding_scale != 1.0:
        parts.append(f"embedding times {config.embedding_scale:g}")
    if config.embedding_norm:
        parts.append("embedding normalised")
    if config.type_vocab_size:
        parts.append(f"{config.type_vocab_size} token types")
    if config.head in LANGUAGE_HEADS:
        parts.append("head tied to the embedding" if config.tie_word_embeddings else "head of its own")
    return ", ".join(parts)


def _position(config: ModelConfig) -> str:
    longest = f"up to {config.context_length:,} tokens"
    if config.padding_positions == "skipped":
        longest += ", padding not counted"
    if config.position == "rotary":
        return f"rotary{_rotary(config)}, {longest}"
    if "relative" in config.position:
        far = config.relative_max_distance
        bias = f"relative bias of {config.relative_buckets} buckets, the last from a distance of {far:,}"
        return f"{bias}; any length" if config.position == "relative" else f"a learned table and a {bias}; {longest}"
    named = {
        "learned": f"a learned table, {longest}",
        "sinusoidal": f"sinusoidal, {longest}",
        "alibi": "ALiBi: scores fall with the distance; any length",
        "disentangled": f"disentangled: scores of contents with distances, in {config.relative_buckets} buckets",
        "none": "none",
    }
    return named.get(config.position, config.position)


def _rotary(config: ModelConfig) -> str:
    words = ""
    if config.rotary_dim and config.rotary_dim != config.head_dim:
        words += f" on {config.rotary_dim} of {config.head_dim} channels"
    words += {"interleaved": ", adjacent channels as pairs", "swapped": ", backwards"}.get(config.rotary_layout, "")
    words += f", base {config.rope_theta:,.0f}"
    if config.local_rope_theta is not None:
        words += f" ({config.local_rope_theta:,.0f} in sliding layers)"
    if config.rope_scaling is not None:
        factor = config.rope_scaling.get("factor")
        words += f", {config.rope_scaling.kind} scaling" + ("" if factor is None else f" by {factor:g}")
    if bare := len(config.layers_without_positions):
        words += f", none in {bare} of {config.num_hidden_layers} layers"
    return words


def _recurrence(config: ModelConfig) -> str:
    if not config.recurs:
        return ""
    kinds = Counter(kind for kind in config.layer_types if kind in RECURRENT_LAYERS)
    named = ", ".join(f"{RECURRENCES.get(kind, kind)} in {count} layers" for kind, count in kinds.items())
    state = (
        f"{config.recurrent_heads} heads with a state of {config.recurrent_head_dim} x {config.recurrent_state_size}"
    )
    if config.recurrent_groups != config.recurrent_heads:
        state += f", keys and queries in {config.recurrent_groups} groups"
    if config.conv_kernel:
        state += f", a convolution over {config.conv_kernel} tokens"
    return f"{named}; {state}"


def _attention(config: ModelConfig) -> str:
    if not config.attends:
        return ""
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    parts = [f"{heads} heads of {config.head_dim}"]
    if groups == 1:
        parts.append("one head of keys and values for all (multi-query)")
    elif groups < heads:
        parts.append(f"keys and values in {groups} heads, each for {heads // groups} (grouped)")
    if config.architecture == "encoder-decoder":
        parts.append("the decoder's also over the encoder")
        if config.encoder_attention_heads and config.encoder_attention_heads != heads:
            parts.append(f"{config.encoder_attention_heads} heads in the encoder")
    if config.full_head_dim or config.full_key_value_heads:
        full, dim = config.full_key_value_heads or groups, config.full_head_dim or config.head_dim
        parts.append(f"in full-attention layers heads of {dim}, keys and values in {full}")
    if config.shared_kv_layers:
        parts.append(f"the last {config.shared_kv_layers} layers use the keys and values of earlier ones")
    if config.keys_as_values:
        parts.append("keys are values in full-attention layers")
    biases = {
        "none": "no biases",
        "qkv": "biases on query, key and value",
        "output": "a bias on the output",
        "all": "biases",
        "all_but_key": "biases, none on the key",
    }
    parts.append(biases.get(config.attention_bias, config.attention_bias))
    if config.query_key_norm == "head":
        parts.append("queries and keys normalised by head")
    elif config.query_key_norm == "each_head":
        parts.append("queries and keys normalised by head, with weights of their own")
    elif config.query_key_norm == "whole":
        parts.append("queries and keys normalised across heads")
    if config.value_norm:
        parts.append("values too")
    if config.attention_scale is not None:
        scale = config.attention_scale
        parts.append("scores not scaled" if scale == 1 else f"scores times {scale:.4g}")
    if config.attention_scale_by_layer != "constant":
        parts.append("divided by the layer's number")
    if config.attention_gate:
        parts.append("outputs gated")
    if config.attention_softcap is not None:
        parts.append(f"scores capped softly at {config.attention_softcap:g}")
    return ", ".join(parts)


def _window(config: ModelConfig) -> str:
    if config.sliding_window is None or "sliding" not in config.layer_types:
        return ""
    kinds = Counter(config.attention_layers)
    which = "all layers" if kinds["full"] == 0 else f"{kinds['sliding']} of {len(config.layer_types)} layers"
    around = "around a token" if config.architecture == "encoder" else "back"
    return f"{config.sliding_window:,} tokens {around}, in {which}"


def _feed_forward(config: ModelConfig) -> str:
    if config.feed_forward == "none":
        return ""
    gated = config.feed_forward == "gated"
    name = (GATED if gated else ACTIVATIONS).get(config.activation, config.activation)
    bias = "biases" if config.feed_forward_bias else "no biases"
    wide = f"{config.intermediate_size:,} wide"
    if config.encoder_intermediate_size and config.encoder_intermediate_size != config.intermediate_size:
        wide += f" ({config.encoder_intermediate_size:,} in the encoder)"
    return f"{'gated' if gated else 'plain'}, {name}, {wide}, {bias}"


def _experts(config: ModelConfig) -> str:
    """What a mixture has, and what of it a token uses."""
    if (experts := config.experts) is None:
        return ""
    sparse = config.num_hidden_layers - len(set(experts.dense_layers))
    parts = [
        f"{experts.num_experts} in {sparse} of {config.num_hidden_layers} layers, {experts.experts_per_token} used per "
        f"token, each {experts.intermediate_size:,} wide"
    ]
    if experts.shared_intermediate_size:
        parts.append(f"a shared one {experts.shared_intermediate_size:,} wide")
    if experts.beside_dense:
        parts.append("beside the feed-forward network")
    parts.append(f"a {experts.router} router".replace("_", " "))
    active, total = active_parameters(config), parameters(config)
    return f"{', '.join(parts)}; {active:,} of {total:,} parameters active per token"


def _logits(config: ModelConfig) -> str:
    if config.head not in LANGUAGE_HEADS:
        return ""
    parts = []
    if config.logit_scale != 1.0:
        parts.append(f"hidden states times {config.logit_scale:.4g}")
    if config.logit_softcap is not None:
        parts.append(f"capped softly at {config.logit_softcap:g}")
    if config.head_bias != "none":
        parts.append("with a bias")
    return ", ".join(parts)


def _pooling(config: ModelConfig) -> str:
    if config.head not in ("embedding", "sequence_classification", "multiple_choice", "next_sentence", "pretraining"):
        return ""
    words = POOLINGS.get(config.pooling, config.pooling)
    return f"{words}, to unit length" if config.head == "embedding" and config.normalize_embedding else words


def _labels(config: ModelConfig) -> str:
    shown = ", ".join(config.labels[:8])
    return shown if len(config.labels) <= 8 else f"{shown} and {len(config.labels) - 8} more"
