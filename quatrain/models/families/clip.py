"""CLIP (Radford et al. 2021, arXiv 2103.00020): a text tower and an image tower that agree on pairs.

Each tower is a transformer of its own, and a family of its own: the text tower reads causally and gives the state of
its end token, the image tower that of its class token. A projection brings both to one width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.nested import NestedFamily
from quatrain.models.families.vit import number_or_pair, sides
from quatrain.models.families.weights import Operation, Rename, renames
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.vision.patches import Patches

LAYERS: list[Operation] = [
    *renames("encoder.layers.{n}.self_attn.q_proj", "layers.{n}.self_attn.q_proj"),
    *renames("encoder.layers.{n}.self_attn.k_proj", "layers.{n}.self_attn.k_proj"),
    *renames("encoder.layers.{n}.self_attn.v_proj", "layers.{n}.self_attn.v_proj"),
    *renames("encoder.layers.{n}.self_attn.out_proj", "layers.{n}.self_attn.o_proj"),
    *renames("encoder.layers.{n}.layer_norm1", "layers.{n}.input_layernorm"),
    *renames("encoder.layers.{n}.layer_norm2", "layers.{n}.post_attention_layernorm"),
    *renames("encoder.layers.{n}.mlp.fc1", "layers.{n}.mlp.up_proj"),
    *renames("encoder.layers.{n}.mlp.fc2", "layers.{n}.mlp.down_proj"),
]

FIXED = {
    "norm": "layer",
    "attention_bias": "all",
    "feed_forward": "plain",
    "feed_forward_bias": True,
    "normalize_embedding": False,
}

HARMLESS = frozenset({"attention_dropout", "initializer_factor", "dropout"})
OLD_END = 2
"""The end token in old text configurations, where the true one is the last of the vocabulary."""


def _keys(hidden: int, inner: int, heads: int) -> tuple[Key, ...]:
    return (
        Key("hidden_size", "hidden_size", hidden),
        Key("intermediate_size", "intermediate_size", inner),
        Key("num_hidden_layers", "num_hidden_layers", 12),
        Key("num_attention_heads", "num_attention_heads", heads),
        Key("layer_norm_eps", "norm_eps", 1e-5),
        Key("hidden_act", "activation", "quick_gelu", ACTIVATIONS),
        Key("projection_dim", "projection_size", 512),
    )


def _read_text(config: dict[str, Any]) -> dict[str, Any]:
    end = config.get("eos_token_id")
    vocabulary = config.get("vocab_size") or 49408
    tokens = {"bos_token_id": 49406, "pad_token_id": 1} if vocabulary == 49408 else {}
    known = {key: config[key] for key in ("bos_token_id", "pad_token_id") if config.get(key) is not None}
    inside = {key: token for key, token in (tokens | known).items() if token < vocabulary}
    last = end is None or end == OLD_END or (isinstance(end, int) and end >= vocabulary)
    return {
        "num_key_value_heads": config.get("num_attention_heads") or 8,
        "eos_token_id": vocabulary - 1 if last else end,
        **{key: inside.get(key) for key in ("bos_token_id", "pad_token_id")},
    }


def _read_image(config: dict[str, Any]) -> dict[str, Any]:
    size, patch = (
        sides(config.get(name) or default, name) for name, default in (("image_size", 224), ("patch_size", 32))
    )
    patches = Patches(size, patch, config.get("num_channels") or 3, bias=False)
    return {
        "frontend": patches,
        "max_position_embeddings": patches.num_vectors,
        "num_key_value_heads": config.get("num_attention_heads") or 12,
    }


def _write_image(config: ModelConfig) -> dict[str, Any]:
    patches: Any = config.frontend
    return {
        "image_size": number_or_pair(patches.image_size),
        "patch_size": number_or_pair(patches.patch_size),
        "num_channels": patches.num_channels,
    }


TEXT = Family(
    name="clip_text_model",
    keys=(
        Key("vocab_size", "vocab_size", 49408),
        Key("max_position_embeddings", "max_position_embeddings", 77),
        *_keys(512, 2048, 8),
    ),
    operations=[
        Rename("embeddings.token_embedding.weight", "embed_tokens.weight"),
        Rename("embeddings.position_embedding.weight", "embed_positions.weight"),
        *LAYERS,
        *renames("final_layer_norm", "norm"),
    ],
    heads={
        "none": Head("CLIPTextModel", (), ""),
        "embedding": Head("CLIPTextModelWithProjection", [Rename("text_projection.weight", "projection.weight")]),
    },
    fixed=FIXED | {"architecture": "decoder", "position": "learned", "pooling": "eos"},
    harmless=HARMLESS,
    read=_read_text,
    reads=frozenset({"vocab_size"}),
    prefix="text_model.",
    features="pictures",
    ignored=(r"(text_model\.)?embeddings\.position_ids",),
)

IMAGE = Family(
    name="clip_vision_model",
    keys=_keys(768, 3072, 12),
    operations=[
        Rename("embeddings.class_embedding", "frontend.class_token"),
        Rename("embeddings.patch_embedding.weight", "frontend.projection.weight"),
        Rename("embeddings.position_embedding.weight", "frontend.position_table"),
        *renames("pre_layrnorm", "embedding_norm"),
        *LAYERS,
        *renames("post_layernorm", "norm"),
    ],
    heads={
        "none": Head("CLIPVisionModel", (), ""),
        "embedding": Head("CLIPVisionModelWithProjection", [Rename("visual_projection.weight", "projection.weight")]),
    },
    fixed=FIXED
    | {"architecture": "encoder", "vocab_size": 0, "position": "none", "embedding_norm": True, "pooling": "first"},
    harmless=HARMLESS | {"vocab_size"},  # LLaVA 1.5's tower names one.
    read=_read_image,
    reads=frozenset({"image_size", "patch_size", "num_channels"}),
    write=_write_image,
    prefix="vision_model.",
    features="pictures",
    ignored=(r"(vision_model\.)?embeddings\.position_ids",),
)


def _join(parts: Mapping[str, ModelConfig], raw: Mapping[str, Any]) -> dict[str, Any]:
    width = raw.get("projection_dim") or 512
    return {
        "image_tower": parts["vision_config"].replace(projection_size=width, normalize_embedding=True),
        "projection_size": width,
        "normalize_embedding": True,
    }


def _split(config: ModelConfig) -> dict[str, ModelConfig]:
    if config.image_tower is None:
        raise InputError(f"family: {format_value(config.family)}; needs an image tower")
    text = config.replace(family=TEXT.name, head="embedding", image_tower=None, normalize_embedding=False,
                          extra=config.extra.get("text_config", {}))  # fmt: skip
    return {"text_config": text, "vision_config": config.image_tower}


FAMILIES = (
    TEXT,
    IMAGE,
    NestedFamily(
        name="clip",
        keys=(),
        operations=(),
        heads={
            "contrastive": Head(
                "CLIPModel",
                [
                    Rename("text_projection.weight", "projection.weight"),
                    Rename("visual_projection.weight", "image_tower.projection.weight"),
                    Rename("logit_scale", "log_scale"),
                ],
            )
        },
        harmless=frozenset({"initializer_factor", "logit_scale_init_value", "text_config_dict", "vision_config_dict"}),
        reads=frozenset({"projection_dim", "text_config", "vision_config"}),
        write=lambda config: {"projection_dim": config.projection_size},
        features="pictures",
        parts={"text_config": lambda raw: (TEXT, "embedding"), "vision_config": lambda raw: (IMAGE, "embedding")},
        join=_join,
        split=_split,
        places={
            "text_config": lambda part: ("text_model.", ""),
            "vision_config": lambda part: ("vision_model.", "image_tower."),
        },
        ignored=(r"(text|vision)_model\.embeddings\.position_ids",),
    ),
)
