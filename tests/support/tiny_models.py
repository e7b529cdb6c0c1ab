"""Tiny models of one usual size and of random weights, for tests of what holds at any size and for any weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from quatrain.models.io import model_folder
from quatrain.models.transformer.config import ModelConfig
from quatrain.models.transformer.stack import Model
from quatrain.tokenizers.tokenizer import Tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
PLAIN: dict[str, Any] = {
    "norm": "layer", "feed_forward": "plain", "activation": "gelu_tanh", "attention_bias": "all",
    "feed_forward_bias": True, "tie_word_embeddings": True,
}  # fmt: skip
"""What gpt2 and bloom share."""


CHARACTERS = "".join(map(chr, range(32, 127))) + "\néß"
"""What the tokenizer of a tiny model folder knows."""


def llama(**changes: Any) -> ModelConfig:
    return ModelConfig(**SIZES | {"family": "llama", "num_key_value_heads": 2} | changes)


def gpt2(**changes: Any) -> ModelConfig:
    return ModelConfig(**SIZES | PLAIN | {"family": "gpt2", "position": "learned"} | changes)


def bloom(**changes: Any) -> ModelConfig:
    """Its files have no place for another width of the feed-forward layers than four times the hidden one."""
    own = {"family": "bloom", "position": "alibi", "embedding_norm": True, "intermediate_size": 128}
    return ModelConfig(**SIZES | PLAIN | own | changes)


def mamba2(**changes: Any) -> ModelConfig:
    own: dict[str, Any] = {
        "family": "mamba2", "position": "none", "feed_forward": "none", "intermediate_size": 0, "head_dim": 0,
        "num_attention_heads": 0, "num_key_value_heads": 0, "layer_types": ("mamba2", "mamba2"), "recurrent_heads": 8,
        "recurrent_head_dim": 8, "recurrent_state_size": 6, "recurrent_groups": 2, "conv_kernel": 4, "conv_bias": True,
    }  # fmt: skip
    return ModelConfig(**SIZES | own | changes)


def xlstm(**changes: Any) -> ModelConfig:
    """Its norm over a few channels of a head amplifies rounding errors where these are small; hence the epsilon."""
    own: dict[str, Any] = {
        "family": "xlstm", "position": "none", "head_dim": 0, "num_attention_heads": 0, "num_key_value_heads": 0,
        "layer_types": ("mlstm", "mlstm"), "recurrent_heads": 4, "recurrent_head_dim": 8, "recurrent_state_size": 4,
        "recurrent_groups": 4, "recurrent_gate_softcap": 15.0, "norm_eps": 0.1,
    }  # fmt: skip
    return ModelConfig(**SIZES | own | changes)


def qwen3_5(**changes: Any) -> ModelConfig:
    own: dict[str, Any] = {
        "family": "qwen3_5_text", "num_key_value_heads": 2, "head_dim": 8, "norm": "rms_offset", "attention_gate": True,
        "query_key_norm": "head", "layer_types": ("gated_delta", "full"), "recurrent_heads": 4, "recurrent_groups": 2,
        "recurrent_head_dim": 6, "recurrent_state_size": 5, "conv_kernel": 4, "norm_eps": 0.1,
        "max_position_embeddings": 256,
    }  # fmt: skip
    return ModelConfig(**SIZES | own | changes)


def make_folder(place: Path, context: int = 1024, seed: int = 0, characters: str = CHARACTERS, **options: Any) -> Path:
    """A model folder of random weights with a character tokenizer that has a chat template."""
    options = {"kind": "char", "chat_template": "chatml", "eos": "<|endoftext|>", **options}
    tokenizer = Tokenizer.train([characters * 3], **options)
    torch.manual_seed(seed)
    config = llama(
        vocab_size=tokenizer.vocab_size, intermediate_size=64, num_attention_heads=2, max_position_embeddings=context,
        eos_token_id=tokenizer.eos_id, bos_token_id=tokenizer.bos_id,
    )  # fmt: skip
    tokenizer.save(place)
    model_folder.save(Model(config), place)
    return place


def random_model(config: ModelConfig, seed: int = 0, scale: float = 0.2) -> Model:
    """A model in evaluation mode whose weights are all large enough to matter."""
    model, generator = Model(config), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save_random(config: ModelConfig, folder: Path, seed: int = 0) -> Path:
    """Writes such a model; returns the folder."""
    model_folder.save(random_model(config, seed), folder)
    return folder
