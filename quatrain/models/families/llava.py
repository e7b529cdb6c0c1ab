"""LLaVA (Liu et al. 2023, arXiv 2304.08485 and 2310.03744): a decoder that reads pictures beside its tokens.

The decoder and the vision tower are families of their own. A projector with the activation `linear` is one linear
layer, as in the first LLaVA; transformers, which always has two, gets the identity as the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from quatrain.core.errors import InputError
from quatrain.core.wording import format_value
from quatrain.models.families import get_family
from quatrain.models.families.mapping import ACTIVATIONS, COMMON_KEYS, Family, Head
from quatrain.models.families.nested import NestedFamily
from quatrain.models.families.weights import Computed, Operation, Rename, renames
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.vision.tower import PictureTokens

LINEAR = "linear"
"""The activation of a projector that is one linear layer."""

NAMES = {"clip_vision_model": "vision_tower.vision_model."}
"""The beginnings of the names of towers' weights, where they are not the usual one."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "text_config": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32,
    },
    "vision_config": {"model_type": "clip_vision_model"},
}  # fmt: skip
"""What transformers takes where a config.json does not say it: LLaVA 1.5's says little of its Llama."""


def _decoder(raw: Mapping[str, Any]) -> tuple[Family, str]:
    family = get_family(raw.get("model_type"))
    if "causal" not in family.heads or family.features:
        raise InputError(f"model_type: {format_value(family.name)}; must be a decoder of texts")
    return family, "causal"


def _tower(raw: Mapping[str, Any]) -> tuple[Family, str]:
    family = get_family(raw.get("model_type"))
    if family.features != "pictures" or "none" not in family.heads or isinstance(family, NestedFamily):
        raise InputError(f"model_type: {format_value(family.name)}; must be a model that reads pictures alone")
    return family, "none"


def _join(parts: Mapping[str, ModelConfig], raw: Mapping[str, Any]) -> dict[str, Any]:
    text, tower = parts["text_config"], parts["vision_config"].replace(pooler="none")
    activation = raw.get("projector_hidden_act") or "gelu"
    if activation not in (*ACTIVATIONS, LINEAR):
        known = ", ".join((*ACTIVATIONS, LINEAR))
        raise InputError(f"projector_hidden_act: {format_value(activation)}; must be one of {known}")
    layer = raw.get("vision_feature_layer")
    tokens = (raw.get(key) for key in ("image_token_index", "image_token_id"))
    frontend = PictureTokens(
        tower=tower,
        token_id=next((token for token in tokens if token is not None), 32000),
        layer=-2 if layer is None else layer,
        selection=raw.get("vision_feature_select_strategy") or "default",
        projector="linear" if activation == LINEAR else "mlp",
        activation=ACTIVATIONS.get(activation, "gelu"),
        bias=raw.get("multimodal_projector_bias") is not False,
        decoder_family=text.family,
    )
    if not 0 <= frontend.token_id < text.vocab_size:
        raise InputError(
            f"image_token_index: {frontend.token_id}; must be from 0, and must be below the decoder's vocab_size "
            f"({text.vocab_size})"
        )
    outer = {key: raw.get(key) for key in COMMON_KEYS[1:] if getattr(text, key) is None}
    return {
        **{key: value for key, value in outer.items() if value is not None},
        "frontend": frontend,
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings")) or text.tie_word_embeddings,
    }


def _split(config: ModelConfig) -> dict[str, ModelConfig]:
    frontend: Any = config.frontend
    if not isinstance(frontend, PictureTokens):
        raise InputError(f"family: {format_value(config.family)}; needs a vision tower and a projector")
    extra = config.extra.get("text_config", {})
    text = config.replace(family=frontend.decoder_family, frontend=None, extra=extra)
    return {"text_config": text, "vision_config": frontend.tower}


def _write(config: ModelConfig) -> dict[str, Any]:
    frontend: Any = config.frontend
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == frontend.activation)
    return {
        "image_token_index": frontend.token_id,
        "image_seq_length": frontend.num_vectors,
        "vision_feature_layer": frontend.layer,
        "vision_feature_select_strategy": frontend.selection,
        "projector_hidden_act": LINEAR if frontend.projector == "linear" else activation,
        "multimodal_projector_bias": frontend.bias,
        "tie_word_embeddings": config.tie_word_embeddings,
        **{key: getattr(config, key) for key in COMMON_KEYS[1:]},
    }


def is_linear(config: ModelConfig) -> bool:
    """Whether the projector is one linear layer."""
    frontend: Any = config.frontend
    return bool(frontend.projector == "linear")


def is_mlp(config: ModelConfig) -> bool:
    """Whether the projector is a network of two linear layers."""
    return not is_linear(config)


def _identity(config: ModelConfig) -> torch.Tensor:
    return torch.eye(config.embedding_size or config.hidden_size)


def _zero(config: ModelConfig) -> torch.Tensor:
    return torch.zeros(config.embedding_size or config.hidden_size)


PROJECTOR: list[Operation] = [
    *renames("multi_modal_projector.linear_1", "frontend.linear_1"),
    *(Rename(f"multi_modal_projector.linear_2.{leaf}", f"frontend.linear_2.{leaf}", when=is_mlp)
      for leaf in ("weight", "bias")),
]  # fmt: skip
SECOND = (
    Computed("multi_modal_projector.linear_2.weight", _identity, written=True),
    Computed("multi_modal_projector.linear_2.bias", _zero, written=True),
)
"""The second layer of a projector that is one linear layer."""


class LlavaFamily(NestedFamily):
    """The family, with the projector that its configuration has."""

    def weights(self, config: ModelConfig) -> list[Operation]:
        """The weight operations of decoder, tower, projector and head."""
        frontend: Any = config.frontend
        second = SECOND[: 1 + frontend.bias] if is_linear(config) else ()
        return [*super().weights(config), *(operation.sized(config) for operation in second)]


FAMILIES = (
    LlavaFamily(
        name="llava",
        keys=(),
        operations=(),
        heads={
            "causal": Head(
                "LlavaForConditionalGeneration",
                [Rename("language_model.lm_head.weight", "lm_head.weight"), *PROJECTOR],
            )
        },
        harmless=frozenset({"ignore_index", "vocab_size"}),
        reads=frozenset(
            {
                *("text_config", "vision_config", "image_token_index", "image_token_id", "image_seq_length"),
                *("vision_feature_layer", "vision_feature_select_strategy", "projector_hidden_act"),
                *("multimodal_projector_bias", "tie_word_embeddings"),
            }
        ),
        write=_write,
        features="pictures",
        parts={"text_config": _decoder, "vision_config": _tower},
        defaults=DEFAULTS,
        join=_join,
        split=_split,
        places={
            "text_config": lambda part: ("language_model." + get_family(part.family).prefix, ""),
            "vision_config": lambda part: (NAMES.get(part.family, "vision_tower."), "frontend.tower."),
        },
        other_beginnings=(
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
            ("vision_tower.", "vision_tower.vision_model."),
            ("model.vision_tower.", "vision_tower.vision_model."),
            ("model.vision_tower.", "vision_tower."),
            ("model.multi_modal_projector.", "multi_modal_projector."),
        ),
        kept=lambda name, config: "vision_tower.pooler." in name,
        ignored=(
            r".*rotary_emb\.inv_freq",
            r"(model\.)?vision_tower\.(vision_model\.)?embeddings\.(position_ids|mask_token)",
        ),
    ),
)
