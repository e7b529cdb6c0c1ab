"""GPT-J (Wang and Komatsuzaki 2021): parallel attention and feed-forward after one norm, adjacent channels rotated."""

from __future__ import annotations

from typing import Any

from quatrain.models.families.gpt2 import HARMLESS, inner_size
from quatrain.models.families.llama import REWARD
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Operation, Rename, renames
from quatrain.models.transformer.config import ModelConfig

BODY: list[Operation] = [
    Rename("wte.weight", "embed_tokens.weight"),
    *renames("h.{n}.ln_1", "layers.{n}.input_layernorm"),
    *(
        Rename(f"h.{{n}}.attn.{theirs}.weight", f"layers.{{n}}.self_attn.{ours}.weight")
        for theirs, ours in {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "out_proj": "o_proj"}.items()
    ),
    *renames("h.{n}.mlp.fc_in", "layers.{n}.mlp.up_proj"),
    *renames("h.{n}.mlp.fc_out", "layers.{n}.mlp.down_proj"),
    *renames("ln_f", "norm"),
]


def _read(config: dict[str, Any]) -> dict[str, Any]:
    return {"num_key_value_heads": config["n_head"], "intermediate_size": inner_size(config)}


def _write(config: ModelConfig) -> dict[str, Any]:
    return {"n_inner": config.intermediate_size}


BIAS = {"score_bias": True}

FAMILIES = (
    Family(
        name="gptj",
        keys=(
            Key("vocab_size", "vocab_size"),
            Key("n_embd", "hidden_size"),
            Key("n_layer", "num_hidden_layers"),
            Key("n_head", "num_attention_heads"),
            Key("n_positions", "max_position_embeddings", 2048),
            Key("rotary_dim", "rotary_dim", 64),
            Key("activation_function", "activation", "gelu_new", ACTIVATIONS),
            Key("layer_norm_epsilon", "norm_eps", 1e-5),
            Key("tie_word_embeddings", "tie_word_embeddings", False),
        ),
        operations=BODY,
        heads={
            "causal": Head("GPTJForCausalLM", renames("lm_head", "lm_head"), settings={"head_bias": "learned"}),
            "sequence_classification": Head("GPTJForSequenceClassification", [Rename("score.weight", "score.weight")]),
            "question_answering": Head("GPTJForQuestionAnswering", renames("qa_outputs", "score"), settings=BIAS),
            "value": Head("GPTJForSequenceClassification", [Rename("score.weight", "score.weight")], extra=REWARD),
            "none": Head("GPTJModel", prefix=""),
            "embedding": Head("GPTJModel", prefix=""),
        },
        fixed={
            "position": "rotary",
            "rotary_layout": "interleaved",
            "norm": "layer",
            "residual": "parallel_shared",
            "feed_forward": "plain",
            "feed_forward_bias": True,
        },
        required={"scale_attn_weights": True, "rotary": True, "gradient_checkpointing": False},
        harmless=HARMLESS,
        read=_read,
        reads=frozenset({"n_inner"}),
        write=_write,
        prefix="transformer.",
        ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias|embed_positions)",),
    ),
)
