"""OPT (Zhang et al. 2022, arXiv 2205.01068): learned positions after two unused rows, LayerNorm, ReLU, tied head.

Only the 350m model has norms after the residuals and an embedding narrower than the hidden states.
"""

from __future__ import annotations

from typing import Any

from quatrain.models.families.llama import REWARD
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Operation, Rename, renames
from quatrain.models.transformer.config import ModelConfig

BODY: list[Operation] = [
    Rename("decoder.embed_tokens.weight", "embed_tokens.weight"),
    Rename("decoder.embed_positions.weight", "embed_positions.weight"),
    Rename("decoder.project_in.weight", "project_in.weight"),
    Rename("decoder.project_out.weight", "project_out.weight"),
    *(
        operation
        for theirs, ours in {
            "self_attn.q_proj": "self_attn.q_proj",
            "self_attn.k_proj": "self_attn.k_proj",
            "self_attn.v_proj": "self_attn.v_proj",
            "self_attn.out_proj": "self_attn.o_proj",
            "self_attn_layer_norm": "input_layernorm",
            "fc1": "mlp.up_proj",
            "fc2": "mlp.down_proj",
            "final_layer_norm": "post_attention_layernorm",
        }.items()
        for operation in renames(f"decoder.layers.{{n}}.{theirs}", f"layers.{{n}}.{ours}")
    ),
    *renames("decoder.final_layer_norm", "norm"),
]


def _read(config: dict[str, Any]) -> dict[str, Any]:
    biased = config.get("enable_bias") is not False
    width, hidden = config.get("word_embed_proj_dim") or config["hidden_size"], config["hidden_size"]
    is_pre_norm = config.get("do_layer_norm_before") is not False
    return {
        "num_key_value_heads": config["num_attention_heads"],
        "embedding_size": 0 if width == hidden else width,
        "norm_position": "pre" if is_pre_norm else "post",
        "final_norm": not config.get("_remove_final_layer_norm"),
        "norm": "layer_without_parameters" if config.get("layer_norm_elementwise_affine") is False else "layer",
        "attention_bias": "all" if biased else "none",
        "feed_forward_bias": biased,
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "word_embed_proj_dim": config.output_hidden_size,
        "do_layer_norm_before": config.norm_position == "pre",
        "_remove_final_layer_norm": not config.final_norm,
        "layer_norm_elementwise_affine": config.norm == "layer",
        "enable_bias": config.feed_forward_bias,
    }


FAMILIES = (
    Family(
        name="opt",
        keys=(
            Key("vocab_size", "vocab_size"),
            Key("hidden_size", "hidden_size"),
            Key("ffn_dim", "intermediate_size"),
            Key("num_hidden_layers", "num_hidden_layers"),
            Key("num_attention_heads", "num_attention_heads"),
            Key("max_position_embeddings", "max_position_embeddings", 2048),
            Key("activation_function", "activation", "relu", ACTIVATIONS),
            Key("init_std", "initializer_range", 0.02),
            Key("tie_word_embeddings", "tie_word_embeddings", True),
        ),
        operations=BODY,
        heads={
            "causal": Head("OPTForCausalLM", [Rename("lm_head.weight", "lm_head.weight")]),
            "sequence_classification": Head("OPTForSequenceClassification", [Rename("score.weight", "score.weight")]),
            "question_answering": Head(
                "OPTForQuestionAnswering", renames("qa_outputs", "score"), settings={"score_bias": True}
            ),
            "value": Head("OPTForSequenceClassification", [Rename("score.weight", "score.weight")], extra=REWARD),
            "none": Head("OPTModel", prefix=""),
            "embedding": Head("OPTModel", prefix=""),
        },
        fixed={"position": "learned", "position_offset": 2, "feed_forward": "plain"},
        required={"learned_embeddings": True, "scale_embeddings": False},
        harmless=frozenset({"dropout", "activation_dropout", "attention_dropout", "layerdrop", "prefix"}),
        read=_read,
        reads=frozenset(
            {
                "word_embed_proj_dim",
                "do_layer_norm_before",
                "_remove_final_layer_norm",
                "layer_norm_elementwise_affine",
                "enable_bias",
            }
        ),
        write=_write,
        prefix="model.",
        ignored=(r"(model\.)?decoder\.version",),
    ),
)
