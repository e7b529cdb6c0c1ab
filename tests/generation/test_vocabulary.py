"""The bytes of published tokenizers' tokens are those of their texts."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.generation.vocabulary import Vocabulary
from quatrain.tokenizers.tokenizer import Tokenizer

FOLDER = Path(os.environ.get("QUATRAIN_DATA", "/nowhere")) / "tokenizers"
NAMES = ["gpt2", "t5_spm.model", "bert_base_uncased_vocab.txt", "whisper_multilingual.tiktoken.gz"]
LOADED = {}


def vocabulary(name):
    if not (FOLDER / name).exists():
        pytest.skip(f"QUATRAIN_DATA has no tokenizers/{name}")
    if name not in LOADED:
        LOADED[name] = Vocabulary(Tokenizer.load(FOLDER / name))
    return LOADED[name]


@pytest.mark.parametrize("name", NAMES)
@given(
    text=st.text(max_size=30) | st.sampled_from(["Don't stop, it's 5.", "  two spaces\n", "日本語 café", "[1, 2]", ""])
)
@settings(deadline=None, max_examples=60)
def test_texts_are_the_pieces_of_their_tokens(name, text):
    own = vocabulary(name)
    tokenizer = own.tokenizer
    ids = [token for token in tokenizer.encode(text) if token not in tokenizer.special_ids]
    assert own.text(ids).decode("utf-8", "replace") == tokenizer.decode(ids)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_that_complete_a_text(name):
    own = vocabulary(name)
    for text in ("the", "ing", "é", "a b"):
        word, found = text.encode(), dict(own.completing(text))
        for cut in range(1, len(word)):
            expected = {token for token, piece in enumerate(own.pieces) if piece.startswith(word[cut:])}
            assert set(found.get(word[:cut], [])) == expected
        assert set(found.get(b"", [])) >= {token for token, piece in enumerate(own.pieces) if word in piece}


def test_a_tokenizer_without_pieces_is_refused():
    class Bytes:
        special_ids = frozenset()

    with pytest.raises(InputError, match=r"need a tokenizer of quatrain\.tokenizers"):
        Vocabulary(Bytes())
    cleaning = Tokenizer.train(["it is n't . so ."] * 9, kind="word")
    cleaning.config["clean_up_tokenization_spaces"] = True
    with pytest.raises(InputError, match="changes the text of tokens by their neighbours"):
        Vocabulary(cleaning)
