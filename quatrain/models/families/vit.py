"""ViT (Dosovitskiy et al. 2020, arXiv 2010.11929), DeiT with its distillation token (Touvron et al. 2020, arXiv
2012.12877) and I-JEPA (Assran et al. 2023, arXiv 2301.08243), which has no class token and pools the mean.

They are BERT's encoder with the norms before its parts, and patches of a picture instead of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.families.mapping import ACTIVATIONS, Family, Head, Key
from quatrain.models.families.weights import Operation, Rename, renames
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.vision.patches import Patches

KEYS = (
    Key("hidden_size", "hidden_size", 768),
    Key("intermediate_size", "intermediate_size", 3072),
    Key("num_hidden_layers", "num_hidden_layers", 12),
    Key("num_attention_heads", "num_attention_heads", 12),
    Key("layer_norm_eps", "norm_eps", 1e-12),
    Key("hidden_act", "activation", "gelu", ACTIVATIONS),
)

FIXED = {
    "architecture": "encoder",
    "vocab_size": 0,
    "position": "none",
    "norm": "layer",
    "attention_bias": "all",
    "feed_forward": "plain",
    "feed_forward_bias": True,
    "score_bias": True,
}

HARMLESS = frozenset({"hidden_dropout_prob", "attention_probs_dropout_prob", "encoder_stride"})
READS = frozenset({"image_size", "patch_size", "num_channels", "pooler_output_size", "pooler_act"})

LAYERS: list[Operation] = [
    *renames("encoder.layer.{n}.attention.attention.query", "layers.{n}.self_attn.q_proj"),
    *renames("encoder.layer.{n}.attention.attention.key", "layers.{n}.self_attn.k_proj"),
    *renames("encoder.layer.{n}.attention.attention.value", "layers.{n}.self_attn.v_proj"),
    *renames("encoder.layer.{n}.attention.output.dense", "layers.{n}.self_attn.o_proj"),
    *renames("encoder.layer.{n}.layernorm_before", "layers.{n}.input_layernorm"),
    *renames("encoder.layer.{n}.layernorm_after", "layers.{n}.post_attention_layernorm"),
    *renames("encoder.layer.{n}.intermediate.dense", "layers.{n}.mlp.up_proj"),
    *renames("encoder.layer.{n}.output.dense", "layers.{n}.mlp.down_proj"),
    *renames("layernorm", "norm"),
]
PATCHES: list[Operation] = [
    *renames("embeddings.patch_embeddings.projection", "frontend.projection"),
    Rename("embeddings.position_embeddings", "frontend.position_table", leading=1),
]
CLASS_TOKEN = Rename("embeddings.cls_token", "frontend.class_token", leading=2)
DISTILLATION_TOKEN = Rename("embeddings.distillation_token", "frontend.distillation_token", leading=2)


def sides(value: Any, name: str) -> tuple[int, int]:
    """Height and width from a number or a pair. Raises InputError for anything else."""
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in pair):
        raise InputError(f"{name}: {format_value(value)}; must be a number of pixels, or height and width")
    return pair[0], pair[1]


def number_or_pair(size: tuple[int, int]) -> int | list[int]:
    """A size as config.json has it: one number for a square."""
    return size[0] if size[0] == size[1] else list(size)


def _read(**tokens: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def read(config: dict[str, Any]) -> dict[str, Any]:
        image, patch = (
            sides(config.get("image_size") or 224, "image_size"),
            sides(config.get("patch_size") or 16, "patch_size"),
        )
        patches = Patches(image, patch, config.get("num_channels") or 3, **tokens)
        if (activation := config.get("pooler_act") or "tanh") != "tanh":
            raise InputError(f"pooler_act: {format_value(activation)}; must be tanh")
        width, hidden = config.get("pooler_output_size"), config.get("hidden_size") or 768
        if width not in (None, hidden):
            raise InputError(f"pooler_output_size: {format_value(width)}; must be hidden_size ({hidden})")
        return {
            "frontend": patches,
            "max_position_embeddings": patches.num_vectors,
            "num_key_value_heads": config.get("num_attention_heads") or 12,
        }

    return read


def _write(config: ModelConfig) -> dict[str, Any]:
    patches: Any = config.frontend
    return {
        "image_size": number_or_pair(patches.image_size),
        "patch_size": number_or_pair(patches.patch_size),
        "num_channels": patches.num_channels,
        "pooler_output_size": config.hidden_size,
        "pooler_act": "tanh",
    }


def _family(name: str, title: str, operations: list[Operation], heads: dict[str, Head], **tokens: bool) -> Family:
    absent = {"pooler.dense.weight": {"pooler": "none"}}
    pooling = "first" if tokens["class_token"] else "mean"
    return Family(
        name=name,
        keys=KEYS,
        operations=[*PATCHES, *operations, *LAYERS],
        heads={
            "image_classification": Head(f"{title}ForImageClassification", renames("classifier", "score")),
            "none": Head(
                f"{title}Model", renames("pooler.dense", "pooler.dense"), "", {"pooler": "tanh"}, absent=absent
            ),
            **heads,
        },
        fixed=FIXED | {"pooling": pooling},
        required={"qkv_bias": True},
        harmless=HARMLESS,
        read=_read(**tokens),
        reads=READS,
        write=_write,
        features="pictures",
        prefix=f"{name}.",
        ignored=(rf"({name}\.)?pooler\.dense\.(weight|bias)", rf"({name}\.)?embeddings\.mask_token"),
    )


TEACHER = Head(
    "DeiTForImageClassificationWithTeacher",
    [*renames("cls_classifier", "score"), *renames("distillation_classifier", "distillation_score")],
)

FAMILIES = (
    _family("vit", "ViT", [CLASS_TOKEN], {}, class_token=True),
    _family("deit", "DeiT", [CLASS_TOKEN, DISTILLATION_TOKEN], {"distilled_classification": TEACHER},
            class_token=True, distillation_token=True),
    _family("ijepa", "IJepa", [], {}, class_token=False),
)  # fmt: skip
