"""What the tests of the verbs share: a tiny model folder with a character tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import make_folder

from quatrain.tokenizers.templates import TEMPLATES

LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?*;'<>|_/\n"
PLAIN = {"characters": LETTERS, "chat_template": TEMPLATES["chatml"], "eos": None}
"""No special token, and few characters."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of fresh weights with a character tokenizer that has a chat template."""
    return make_folder(tmp_path_factory.mktemp("model"), 128, **PLAIN)


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with room for a conversation."""
    return make_folder(tmp_path_factory.mktemp("talker"), **PLAIN)
