"""A tokenizer of another vocabulary size than the model's is told with both counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.tokenizers.fit import check_fits, check_ids
from quatrain.tokenizers.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the quick brown fox"], vocab_size=300, special_tokens=["<|x|>"])


def test_a_tokenizer_that_fits(tokenizer: Tokenizer) -> None:
    check_fits(tokenizer, tokenizer.vocab_size)
    check_fits(tokenizer, tokenizer.vocab_size + 64)


def test_a_tokenizer_with_more_tokens_than_rows(tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size
    with pytest.raises(InputError) as caught:
        check_fits(tokenizer, size - 7, model="gpt2")
    message = str(caught.value)
    assert f"has {size} tokens" in message and f"embedding of gpt2 {size - 7} rows" in message
    assert repr(tokenizer.id_to_token(size - 7)) in message and "and 2 more" in message
    assert "Use the tokenizer that came with the model" in message
    with pytest.raises(InputError) as caught:
        check_fits(tokenizer, size - 1)
    assert "more" not in str(caught.value).split("Without a row")[1].split("Use")[0]


def test_ids_past_the_embedding() -> None:
    with pytest.raises(InputError, match=r"prompt 2: token 1 has id 9, the model's embedding rows 0 to 8"):
        check_ids([3, 9, 10], 9, what="prompt 2")
    with pytest.raises(InputError, match="token 0 has id -1"):
        check_ids([-1], 9)


@given(ids=st.lists(st.integers(-3, 12)), size=st.integers(1, 10))
def test_ids_pass_if_and_only_if_all_have_a_row(ids: list[int], size: int) -> None:
    if all(0 <= each < size for each in ids):
        check_ids(ids, size)
    else:
        with pytest.raises(InputError):
            check_ids(ids, size)
