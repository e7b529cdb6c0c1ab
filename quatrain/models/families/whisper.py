"""Whisper (Radford et al. 2022, arXiv 2212.04356): BART's stack in pre-norm form, whose encoder reads sound.

Log-mel features pass two convolutions and get fixed sinusoids (`quatrain.models.audio.frontend`); the decoder has
learned positions. Keys have no bias.
"""

from __future__ import annotations

from typing import Any

from quatrain.models.audio.frontend import SoundFrontend
from quatrain.models.families import bart
from quatrain.models.families.mapping import Family, Head, Key
from quatrain.models.families.weights import Operation, Rename, renames
from quatrain.models.transformer.config import ModelConfig

KEYS = (
    *(key for key in bart.KEYS if key.theirs != "max_position_embeddings"),
    Key("max_target_positions", "max_position_embeddings", 448),
)

BODY: list[Operation] = [
    *renames("encoder.conv1", "encoder.frontend.conv1"),
    *renames("encoder.conv2", "encoder.frontend.conv2"),
    Rename("encoder.embed_positions.weight", "encoder.frontend.timing_table"),
    Rename("decoder.embed_tokens.weight", "embed_tokens.weight"),
    Rename("decoder.embed_positions.weight", "embed_positions.weight"),
    *(
        operation
        for operation in (*bart.layers("encoder", "encoder.", "{e}"), *bart.layers("decoder", "", "{n}"))
        if not operation.sources[0].endswith("k_proj.bias")
    ),
    *renames("encoder.layer_norm", "encoder.norm"),
    *renames("decoder.layer_norm", "norm"),
]

SPEC_AUGMENT = {
    "apply_spec_augment", "mask_time_prob", "mask_time_length", "mask_time_min_masks", "mask_feature_prob",
    "mask_feature_length", "mask_feature_min_masks",
}  # fmt: skip
CLASSIFIER = {"use_weighted_layer_sum", "classifier_proj_size"}


def _read(config: dict[str, Any]) -> dict[str, Any]:
    bands, positions = config.get("num_mel_bins"), config.get("max_source_positions")
    return bart.read(config) | {"frontend": SoundFrontend(bands or 80, positions or 1500)}


def _write(config: ModelConfig) -> dict[str, Any]:
    sound: Any = config.frontend
    sizes = {"num_mel_bins": sound.num_mel_bins, "max_source_positions": sound.max_positions}
    return bart.write(config) | sizes | {"tie_word_embeddings": True}


FAMILIES = (
    Family(
        name="whisper",
        keys=KEYS,
        operations=BODY,
        heads={
            "seq2seq": Head("WhisperForConditionalGeneration", [Rename("proj_out.weight", "lm_head.weight")]),
            "none": Head("WhisperModel", (), ""),
        },
        fixed={
            "architecture": "encoder-decoder",
            "position": "learned",
            "encoder_position": "none",
            "norm": "layer",
            "attention_bias": "all_but_key",
            "feed_forward": "plain",
            "feed_forward_bias": True,
            "tie_word_embeddings": True,
            "padding_embedding": "fixed",
        },
        required={"tie_word_embeddings": True, "is_decoder": False},
        harmless=bart.HARMLESS | SPEC_AUGMENT | CLASSIFIER | {"median_filter_width", "forced_decoder_ids"},
        read=_read,
        reads=(bart.READS | {"num_mel_bins", "max_source_positions"})
        - {"force_bos_token_to_be_generated", "_num_labels"},
        write=_write,
        prefix="model.",
        features="sound",
    ),
)
