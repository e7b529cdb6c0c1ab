"""The first GPT (Radford et al. 2018): norms after the residuals, learned positions, no final norm."""

from __future__ import annotations

from typing import Any

from quatrain.core.errors import InputError
from quatrain.models.families.gpt2 import HARMLESS, context_problem, projections
from quatrain.models.families.llama import REWARD
from quatrain.models.families.mapping import Family, Head, Key
from quatrain.models.families.weights import Rename, Split, renames
from quatrain.models.transformer.config import ModelConfig

ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}
"""The names of activations in this family, whose GELU is the tanh form."""


def _read(config: dict[str, Any]) -> dict[str, Any]:
    if (problem := context_problem(config)) is not None:
        raise InputError(f"{problem}.")
    return {"num_key_value_heads": config["n_head"], "intermediate_size": 4 * config["n_embd"]}


def _write(config: ModelConfig) -> dict[str, Any]:
    return {}


SCORE = [Rename("score.weight", "score.weight")]

FAMILIES = (
    Family(
        name="openai-gpt",
        keys=(
            Key("vocab_size", "vocab_size"),
            Key("n_embd", "hidden_size"),
            Key("n_layer", "num_hidden_layers"),
            Key("n_head", "num_attention_heads"),
            Key("n_positions", "max_position_embeddings", 512),
            Key("afn", "activation", "gelu", ACTIVATIONS),
            Key("layer_norm_epsilon", "norm_eps", 1e-5),
            Key("tie_word_embeddings", "tie_word_embeddings", True),
        ),
        operations=[
            Rename("tokens_embed.weight", "embed_tokens.weight"),
            Rename("positions_embed.weight", "embed_positions.weight"),
            Split("h.{n}.attn.c_attn.weight", projections("weight"), transpose=True),
            Split("h.{n}.attn.c_attn.bias", projections("bias")),
            *renames("h.{n}.attn.c_proj", "layers.{n}.self_attn.o_proj", transpose=True),
            *renames("h.{n}.ln_1", "layers.{n}.input_layernorm"),
            *renames("h.{n}.mlp.c_fc", "layers.{n}.mlp.up_proj", transpose=True),
            *renames("h.{n}.mlp.c_proj", "layers.{n}.mlp.down_proj", transpose=True),
            *renames("h.{n}.ln_2", "layers.{n}.post_attention_layernorm"),
        ],
        heads={
            "causal": Head("OpenAIGPTLMHeadModel", [Rename("lm_head.weight", "lm_head.weight")]),
            "sequence_classification": Head("OpenAIGPTForSequenceClassification", SCORE),
            "value": Head("OpenAIGPTForSequenceClassification", SCORE, extra=REWARD),
            "none": Head("OpenAIGPTModel", prefix=""),
            "embedding": Head("OpenAIGPTModel", prefix=""),
        },
        fixed={
            "position": "learned",
            "norm": "layer",
            "norm_position": "post",
            "attention_bias": "all",
            "feed_forward": "plain",
            "feed_forward_bias": True,
        },
        harmless=frozenset({"n_special", "predict_special_tokens"}) | HARMLESS,
        read=_read,
        reads=frozenset({"n_ctx"}),
        write=_write,
        prefix="transformer.",
        ignored=(r"(transformer\.)?h\.\d+\.attn\.bias", r"(transformer\.)?position_ids"),
    ),
)
