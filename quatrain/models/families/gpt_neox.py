"""GPT-NeoX (Black et al. 2022, arXiv 2204.06745) and Pythia (Biderman et al. 2023, arXiv 2304.01373).

Rotary positions on a quarter of each head; parallel attention and feed-forward, each with its own norm.
"""

from __future__ import annotations

from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families import rope
from quatrain.models.families.bloom import fused
from quatrain.models.families.llama import LAYER_SIZES, classifier_heads, heads
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Operation, Rename, renames
from quatrain.models.transformer.config import ModelConfig

BODY: list[Operation] = [
    Rename("embed_in.weight", "embed_tokens.weight"),
    *renames("layers.{n}.input_layernorm", "layers.{n}.input_layernorm"),
    *renames("layers.{n}.post_attention_layernorm", "layers.{n}.post_attention_layernorm"),
    fused("layers.{n}.attention.query_key_value", "weight"),
    fused("layers.{n}.attention.query_key_value", "bias"),
    *renames("layers.{n}.attention.dense", "layers.{n}.self_attn.o_proj"),
    *renames("layers.{n}.mlp.dense_h_to_4h", "layers.{n}.mlp.up_proj"),
    *renames("layers.{n}.mlp.dense_4h_to_h", "layers.{n}.mlp.down_proj"),
    *renames("final_layer_norm", "norm"),
]


def _read(config: dict[str, Any]) -> dict[str, Any]:
    shares = [config[name] for name in ("rotary_pct", "partial_rotary_factor") if config.get(name) is not None]
    bases = [config[name] for name in ("rotary_emb_base", "rope_theta") if config.get(name) is not None]
    for names, values in (("rotary_pct and partial_rotary_factor", shares), ("rotary_emb_base and rope_theta", bases)):
        if len(set(values)) > 1:
            raise InputError(f"{names}: {values[0]} and {values[1]} contradict each other; leave one of them out.")
    plain = {key: value for key, value in config.items() if key != "rope_theta"}
    return {
        **rope.read(plain | ({"rope_theta": bases[0]} if bases else {})),
        "rotary_dim": rope.rotary_dim(config | ({"rotary_pct": shares[0]} if shares else {}), 0.25, "rotary_pct"),
        "num_key_value_heads": config["num_attention_heads"],
        "attention_bias": "none" if config.get("attention_bias") is False else "all",
        "residual": "sequential" if config.get("use_parallel_residual") is False else "parallel",
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    written = rope.write(config)
    # These names are read by every version of transformers.
    written["rotary_emb_base"] = written.pop("rope_theta")
    return {
        **written,
        "rotary_pct": rope.partial_factor(config),
        "attention_bias": config.attention_bias == "all",
        "use_parallel_residual": config.residual == "parallel",
    }


FAMILIES = (
    Family(
        name="gpt_neox",
        keys=(
            *LAYER_SIZES,
            Key("max_position_embeddings", "max_position_embeddings", 2048),
            Key("layer_norm_eps", "norm_eps", 1e-5),
            Key("hidden_act", "activation", "gelu", ACTIVATIONS),
            Key("tie_word_embeddings", "tie_word_embeddings", False),
        ),
        operations=BODY,
        heads={
            **heads("GPTNeoX", spans=None),
            **classifier_heads("GPTNeoX"),
            "causal": Head("GPTNeoXForCausalLM", [Rename("embed_out.weight", "lm_head.weight")]),
        },
        fixed={"position": "rotary", "norm": "layer", "feed_forward": "plain", "feed_forward_bias": True},
        harmless=frozenset(
            {
                "attention_dropout",
                "attention_probs_dropout_prob",
                "classifier_dropout",
                "hidden_dropout",
                "hidden_dropout_prob",
                "is_decoder",
            }
        ),
        read=_read,
        reads=rope.KEYS
        | {"rotary_pct", "rotary_emb_base", "partial_rotary_factor", "attention_bias", "use_parallel_residual"},
        write=_write,
        prefix="gpt_neox.",
        aliases={"lm_head.weight": "embed_out.weight"},
        ignored=(
            r"(gpt_neox\.)?layers\.\d+\.attention\.(bias|masked_bias)",
            r"(gpt_neox\.)?layers\.\d+\.attention\.rotary_emb\.inv_freq",
        ),
    ),
)
