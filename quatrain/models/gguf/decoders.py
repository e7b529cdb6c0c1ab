"""llama.cpp's architectures of plain decoders, and how they map to our configuration and weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from quatrain.models.families.weights import Operation, Rename
from quatrain.models.gguf.architecture import (
    ATTENTION,
    EMBEDDINGS,
    FEED_FORWARD,
    GATED_IN_ONE,
    GELU,
    HEAD_NORMS,
    NO_PROJECTIONS,
    PLAIN_DECODER,
    PLAIN_FEED_FORWARD,
    QUERY_KEY_VALUE,
    Architecture,
    Metadata,
    even_heads,
    ignores_windows,
    named,
    no_attention_bias,
    pairwise_decoder,
    pattern,
    pattern_of,
    read_biases,
    rounded,
    without,
)
from quatrain.models.gguf.operations import PlusOne
from quatrain.models.transformer.config import ModelConfig

LAYER_NORM = "attention.layer_norm_epsilon"
OUTPUT_NORMS = {
    "post_attention_norm": "attention_output_layernorm",
    "post_ffw_norm": "feed_forward_output_layernorm",
}
GEMMA_NORMS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **OUTPUT_NORMS,
}


def _qwen(config: ModelConfig) -> list[Operation]:
    return named(EMBEDDINGS, ATTENTION | FEED_FORWARD | HEAD_NORMS)


def _gemma(config: ModelConfig) -> list[Operation]:
    plain = {name: ours for name, ours in (ATTENTION | FEED_FORWARD).items() if name not in GEMMA_NORMS}
    embeddings = {name: ours for name, ours in EMBEDDINGS.items() if name != "output_norm"}
    return [*named(embeddings, plain), *named({"output_norm": "norm"}, GEMMA_NORMS | HEAD_NORMS, PlusOne)]


def _phi2(config: ModelConfig) -> list[Operation]:
    layer = {name: ours for name, ours in (ATTENTION | PLAIN_FEED_FORWARD).items() if name != "ffn_norm"}
    return named(EMBEDDINGS, layer)


def _phi3(config: ModelConfig) -> list[Operation]:
    layer = NO_PROJECTIONS | {name: FEED_FORWARD[name] for name in ("ffn_norm", "ffn_down")}
    return [*named(EMBEDDINGS, layer), *QUERY_KEY_VALUE, *GATED_IN_ONE]


def _gpt2(config: ModelConfig) -> list[Operation]:
    return [*PLAIN_DECODER, Rename("position_embd.weight", "embed_positions.weight")]


def _bloom(config: ModelConfig) -> list[Operation]:
    return [*PLAIN_DECODER, *named({"token_embd_norm": "embedding_norm"}, {})]


def _olmo2(config: ModelConfig) -> list[Operation]:
    layer = without(ATTENTION | FEED_FORWARD, "attn_norm", "ffn_norm")
    return named(EMBEDDINGS, layer | OUTPUT_NORMS | HEAD_NORMS)


def _glm4(config: ModelConfig) -> list[Operation]:
    layer = without(ATTENTION | FEED_FORWARD, "ffn_gate", "ffn_up") | OUTPUT_NORMS
    return [*named(EMBEDDINGS, layer), *GATED_IN_ONE]


def _cohere2(config: ModelConfig) -> list[Operation]:
    return named(EMBEDDINGS, without(ATTENTION | FEED_FORWARD, "ffn_norm"))


def _falcon(config: ModelConfig) -> list[Operation]:
    """The norm of attention has the second name in the models that have two."""
    norms = {"attn_norm_2": "input_layernorm", "attn_norm": "post_attention_layernorm"}
    layer = without(NO_PROJECTIONS | PLAIN_FEED_FORWARD, "attn_norm", "ffn_norm")
    layer |= norms if config.residual == "parallel" else {"attn_norm": "input_layernorm"}
    return [*named(EMBEDDINGS, layer), *QUERY_KEY_VALUE]


def _starcoder2(config: ModelConfig) -> list[Operation]:
    return named(EMBEDDINGS, ATTENTION | PLAIN_FEED_FORWARD)


def _olmo2_limits(config: ModelConfig) -> Iterator[str]:
    yield from (problem for problem in even_heads(config) if problem.startswith("head_dim"))
    yield from no_attention_bias(config)
    if "sliding" in config.layer_types:
        yield from pattern(config, 4)
        if config.local_rope_scaling is not None:
            yield "rope_scaling of the sliding layers: llama.cpp has none"


def _write_olmo2(config: ModelConfig) -> dict[str, Any]:
    if config.sliding_window is None:
        return {}
    local = config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
    return {"attention.sliding_window": config.sliding_window, "rope.freq_base_swa": float(local)}


def _read_olmo2(own: Metadata) -> dict[str, Any]:
    if not own.get("attention.sliding_window"):
        return {}
    local = own.get("rope.freq_base_swa", own.get("rope.freq_base", 500_000.0))
    return {
        "sliding_window": own["attention.sliding_window"],
        "layer_types": pattern_of(own["block_count"], 4),
        "local_rope_theta": rounded(local),
    }


def _olmo_family(own: Metadata) -> str:
    return "olmo3" if own.get("olmo2.attention.sliding_window") else "olmo2"


def _smollm3_limits(config: ModelConfig) -> Iterator[str]:
    bare = tuple(layer for layer in range(config.num_hidden_layers) if (layer + 1) % 4 == 0)
    if config.layers_without_positions != bare:
        yield "no_rope_layers: llama.cpp computes every 4th layer without positions"
    yield from no_attention_bias(config)
    if config.feed_forward_bias:
        yield "mlp_bias: llama.cpp has none for smollm3"
    yield from ignores_windows(config)


def _read_smollm3(own: Metadata) -> dict[str, Any]:
    return {"layers_without_positions": tuple(range(3, own["block_count"], 4)), "layer_types": ()}


def write_granite(config: ModelConfig) -> dict[str, Any]:
    """Granite's factors, which llama.cpp names as Hugging Face does."""
    scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
    return {
        "embedding_scale": float(config.embedding_scale),
        "residual_scale": float(config.residual_scale),
        "attention.scale": float(scale),
        "logit_scale": 1.0 / config.logit_scale,
    }


def read_granite(own: Metadata) -> dict[str, Any]:
    """The factors of Granite, and whether there are biases."""
    return {
        **read_biases(own),
        "embedding_scale": rounded(own.get("embedding_scale", 1.0)),
        "residual_scale": rounded(own.get("residual_scale", 1.0)),
        "attention_scale": rounded(own["attention.scale"]) if own.get("attention.scale") else None,
        "logit_scale": 1.0 / rounded(own.get("logit_scale", 1.0)),
    }


def _glm4_read(own: Metadata) -> dict[str, Any]:
    return {"attention_bias": "qkv" if "blk.0.attn_q.bias" in own["shapes"] else "none"}


def _cohere2_limits(config: ModelConfig) -> Iterator[str]:
    yield from pattern(config, 4)
    full = tuple(layer for layer, kind in enumerate(config.layer_types) if kind == "full")
    if config.layers_without_positions != full:
        yield "layers without positions: llama.cpp computes those with full attention"
    yield from no_attention_bias(config)
    if not config.tie_word_embeddings:
        yield "tie_word_embeddings false: llama.cpp has no head of its own for cohere2"


def _write_cohere2(config: ModelConfig) -> dict[str, Any]:
    return {"attention.sliding_window": config.sliding_window, "logit_scale": float(config.logit_scale)}


def _read_cohere2(own: Metadata) -> dict[str, Any]:
    kinds = pattern_of(own["block_count"], 4)
    return {
        "sliding_window": own.get("attention.sliding_window", 4096),
        "layer_types": kinds,
        "layers_without_positions": tuple(layer for layer, kind in enumerate(kinds) if kind == "full"),
        "logit_scale": rounded(own.get("logit_scale", 0.0625)),
    }


def _falcon_limits(config: ModelConfig) -> Iterator[str]:
    if config.position != "rotary":
        yield f"positions {config.position}: llama.cpp computes rotary ones for falcon"
    if config.residual == "sequential":
        yield "parallel_attn false: llama.cpp computes attention and feed-forward in parallel"
    if config.feed_forward_bias:
        yield "bias: llama.cpp has none for falcon"


def _read_falcon(own: Metadata) -> dict[str, Any]:
    return {"residual": "parallel" if "blk.0.attn_norm_2.weight" in own["shapes"] else "parallel_shared"}


def _write_stablelm(config: ModelConfig) -> dict[str, Any]:
    return {"use_parallel_residual": config.residual == "parallel_shared"}


def _read_stablelm(own: Metadata) -> dict[str, Any]:
    shapes = own["shapes"]
    return {
        "attention_bias": "qkv" if "blk.0.attn_q.bias" in shapes else "none",
        "query_key_norm": "each_head" if "blk.0.attn_q_norm.weight" in shapes else "none",
        "residual": "sequential" if "blk.0.ffn_norm.weight" in shapes else "parallel_shared",
    }


def _starcoder2_limits(config: ModelConfig) -> Iterator[str]:
    if not config.feed_forward_bias:
        yield "use_bias false: llama.cpp needs the biases of starcoder2"
    yield from even_heads(config)


def _ministral3_limits(config: ModelConfig) -> Iterator[str]:
    yield from ignores_windows(config)
    scaling = config.rope_scaling
    if scaling is not None and scaling.get("mscale", 1.0) != scaling.get("mscale_all_dim", 1.0):
        yield "mscale: llama.cpp computes that of mscale_all_dim"


def _write_ministral3(config: ModelConfig) -> dict[str, Any]:
    return {"attention.temperature_scale": float(config.query_growth)} if config.query_growth else {}


def _read_ministral3(own: Metadata) -> dict[str, Any]:
    return {**read_biases(own), "query_growth": rounded(own.get("attention.temperature_scale", 0.0))}


def _gemma_limits(every: int, large: int) -> Callable[[ModelConfig], Iterator[str]]:
    """What llama.cpp fixes for Gemma: the pattern of layers, and the attention scale (of the 27B model another)."""

    def limits(config: ModelConfig) -> Iterator[str]:
        yield from pattern(config, every)
        width = config.head_dim
        if config.num_hidden_layers == large:
            width = config.hidden_size // config.num_attention_heads
        scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        if abs(scale - width**-0.5) > 1e-6:
            yield f"query_pre_attn_scalar {scale**-2:.6g}: llama.cpp computes {width}"
        yield from no_attention_bias(config)
        if config.local_rope_scaling is not None:
            yield "rope_scaling of the sliding layers: llama.cpp has none"

    return limits


def _write_gemma(config: ModelConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"attention.sliding_window": config.sliding_window}
    if config.attention_softcap is not None:
        values["attn_logit_softcapping"] = float(config.attention_softcap)
    if config.logit_softcap is not None:
        values["final_logit_softcapping"] = float(config.logit_softcap)
    if config.local_rope_theta is not None:
        values["rope.freq_base_swa"] = float(config.local_rope_theta)
    return values


def _read_gemma(every: int, large: int) -> Callable[[Metadata], dict[str, Any]]:
    def read(own: Metadata) -> dict[str, Any]:
        layers, heads = own["block_count"], own["attention.head_count"]
        width = own.get("attention.key_length") or own["embedding_length"] // heads
        if layers == large:
            width = own["embedding_length"] // heads
        caps = (("attention_softcap", "attn_logit_softcapping"), ("logit_softcap", "final_logit_softcapping"))
        found: dict[str, Any] = {
            "layer_types": pattern_of(layers, every),
            "sliding_window": own.get("attention.sliding_window", 4096),
            "attention_scale": width**-0.5,
            **{ours: float(own[theirs]) for ours, theirs in caps if theirs in own},
        }
        if every == 6:
            found["local_rope_theta"] = float(own.get("rope.freq_base_swa", 10000.0))
        return found

    return read


def _write_gpt_neox(config: ModelConfig) -> dict[str, Any]:
    return {"use_parallel_residual": config.residual == "parallel"}


def _read_gpt_neox(own: Metadata) -> dict[str, Any]:
    return {"residual": "parallel" if own.get("use_parallel_residual", True) else "sequential"}


def _gpt2_limits(config: ModelConfig) -> Iterator[str]:
    if config.attention_scale is not None or config.attention_scale_by_layer != "constant":
        yield "scale_attn_weights, scale_attn_by_inverse_layer_idx: llama.cpp divides by the root of the head's width"


def _phi3_limits(config: ModelConfig) -> Iterator[str]:
    # llama.cpp has windows for phi3, so only the heads are limited.
    yield from (problem for problem in even_heads(config) if problem.startswith("head_dim"))


def _window(own: Metadata) -> dict[str, Any]:
    window = own.get("attention.sliding_window") or None
    return {"sliding_window": window, "layer_types": ()}


def _write_window(config: ModelConfig) -> dict[str, Any]:
    return {} if config.sliding_window is None else {"attention.sliding_window": config.sliding_window}


DECODERS = (
    Architecture("qwen2", ("qwen2",), _qwen, limits=even_heads),
    Architecture("qwen3", ("qwen3",), _qwen, limits=ignores_windows, read=read_biases),
    Architecture(
        "gemma2", ("gemma2",), _gemma, activations=GELU, limits=_gemma_limits(2, 46), write=_write_gemma,
        read=_read_gemma(2, 46),
    ),
    Architecture(
        "gemma3", ("gemma3_text",), _gemma, activations=GELU, limits=_gemma_limits(6, 62), write=_write_gemma,
        read=_read_gemma(6, 62),
    ),
    Architecture("phi2", ("phi",), _phi2, LAYER_NORM, GELU),
    Architecture("phi3", ("phi3",), _phi3, limits=_phi3_limits, write=_write_window, read=_window),
    Architecture("gpt2", ("gpt2",), _gpt2, LAYER_NORM, GELU, limits=_gpt2_limits, rotary=False),
    Architecture(
        "gptneox", ("gpt_neox",), lambda config: PLAIN_DECODER, LAYER_NORM, GELU,
        write=_write_gpt_neox, read=_read_gpt_neox,
    ),
    Architecture("bloom", ("bloom",), _bloom, LAYER_NORM, GELU, rotary=False),
    Architecture(
        "olmo2", ("olmo2", "olmo3"), _olmo2, limits=_olmo2_limits, write=_write_olmo2, read=_read_olmo2,
        family_of=_olmo_family,
    ),
    Architecture("smollm3", ("smollm3",), pairwise_decoder, limits=_smollm3_limits, read=_read_smollm3),
    Architecture("granite", ("granite",), pairwise_decoder, write=write_granite, read=read_granite),
    Architecture("glm4", ("glm4",), _glm4, read=_glm4_read),
    Architecture(
        "cohere2", ("cohere2",), _cohere2, LAYER_NORM, limits=_cohere2_limits, write=_write_cohere2, read=_read_cohere2
    ),
    Architecture("falcon", ("falcon",), _falcon, LAYER_NORM, GELU, limits=_falcon_limits, read=_read_falcon),
    Architecture(
        "stablelm", ("stablelm",), lambda config: named(EMBEDDINGS, ATTENTION | FEED_FORWARD | HEAD_NORMS), LAYER_NORM,
        write=_write_stablelm, read=_read_stablelm,
    ),
    Architecture("starcoder2", ("starcoder2",), _starcoder2, LAYER_NORM, GELU, limits=_starcoder2_limits),
    Architecture(
        "mistral3", ("ministral3",), pairwise_decoder, limits=_ministral3_limits, write=_write_ministral3,
        read=_read_ministral3, yarn_multiplier=1.0,
    ),
)  # fmt: skip
"""The decoders without experts and without recurrence."""
