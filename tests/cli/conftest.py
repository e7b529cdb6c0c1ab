"""What the tests of the verbs share: a tiny model folder with a character tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import llama

from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.tokenizers.templates import TEMPLATES
from quatrain.tokenizers.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?*;'<>|_/\n"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of fresh weights with a character tokenizer that has a chat template."""
    return make_folder(tmp_path_factory.mktemp("model"), 128)


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with room for a conversation."""
    return make_folder(tmp_path_factory.mktemp("talker"), 1024)


def make_folder(place: Path, context: int) -> Path:
    tokenizer = Tokenizer.train([LETTERS * 3], kind="char", chat_template=TEMPLATES["chatml"])
    torch.manual_seed(0)
    config = llama(
        vocab_size=tokenizer.vocab_size, intermediate_size=64, num_attention_heads=2, max_position_embeddings=context,
        eos_token_id=tokenizer.eos_id, bos_token_id=tokenizer.bos_id,
    )  # fmt: skip
    tokenizer.save(place)
    model_folder.save(Model(config), place)
    return place
