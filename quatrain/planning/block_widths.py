"""Which rows of a model quantized formats cannot hold: their blocks of 32 or 256 weights must divide every row.

llama.cpp's Q4_0 to Q8_0 have blocks of 32 weights, its K formats (Q2_K to Q6_K) of 256. A row that they do not divide
is stored in a larger format. The widths are fixed when a model is created, so they are said before it is trained.
"""

from __future__ import annotations

from quatrain.models.transformer.config import ModelConfig

BLOCKS = {32: "Q4_0 to Q8_0", 256: "the K formats Q2_K to Q6_K"}
"""Weights of a block, and the formats."""


def row_widths(config: ModelConfig) -> dict[str, int]:
    """The widths of the rows of a model's matrices, by what decides them."""
    attention = config.num_attention_heads * config.head_dim
    widths = {"hidden_size": config.hidden_size}
    if config.feed_forward != "none":
        widths["intermediate_size"] = config.intermediate_size
    if config.attends and attention != config.hidden_size:
        widths["num_attention_heads x head_dim"] = attention
    if config.embedding_size and config.embedding_size != config.hidden_size:
        widths["embedding_size"] = config.embedding_size
    return widths


def undivided(config: ModelConfig, block: int) -> dict[str, int]:
    """The widths that blocks of `block` weights do not divide."""
    return {name: width for name, width in row_widths(config).items() if width % block}


def width_notes(config: ModelConfig) -> list[str]:
    """One note for each size of block that does not divide every row; empty if all rows can be quantized."""
    notes = []
    for block, formats in BLOCKS.items():
        if wrong := undivided(config, block):
            named = ", ".join(f"{name} {width}" for name, width in wrong.items())
            notes.append(
                f"{named}: not a multiple of {block}, so an export to GGUF keeps these rows in a larger format than "
                f"{formats}; decide before training"
            )
    return notes
