"""A tiny LLaVA of random weights with its tokenizer and processor, in a folder."""

from __future__ import annotations

from pathlib import Path

from tiny_models import CHARACTERS

from quatrain.data.image_processor import ImageProcessor
from quatrain.models.families import get_family
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.tokenizers.tokenizer import Tokenizer

SIDE = 12


def make_llava(folder: Path, context: int = 512, seed: int = 0) -> Path:
    """Pictures of 12x12 pixels in patches of 4 become 9 tokens."""
    import torch

    tokenizer = Tokenizer.train([CHARACTERS], kind="char", eos="<|endoftext|>", special_tokens=["<image>"],
                                chat_template="llava")  # fmt: skip
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    raw = {
        "model_type": "llava", "image_token_index": tokenizer.token_to_id("<image>"),
        "text_config": {"model_type": "llama", **sizes, "num_key_value_heads": 2, "vocab_size": tokenizer.vocab_size,
                        "max_position_embeddings": context, "eos_token_id": tokenizer.eos_id},
        "vision_config": {"model_type": "clip_vision_model", **sizes, "image_size": SIDE, "patch_size": 4},
    }  # fmt: skip
    model = Model(get_family("llava").from_hf(raw))
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model_folder.save(model, folder)
    tokenizer.save(folder)
    ImageProcessor(**{**vars(ImageProcessor.of(SIDE)), "kind": "CLIP"}).save(folder)
    return folder
