"""Tokens beside tokenizer.json have transformers' ids, order and flags, whatever mixture of files names them."""

from __future__ import annotations

import ast
import inspect
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quatrain.errors import InputError
from quatrain.text.added_tokens import ROLES
from quatrain.text.tokenizer import Tokenizer
from quatrain.text.tokenizer_keys import DEFAULT_ROLES, HARMLESS, HONOURED, REFUSED

transformers = pytest.importorskip("transformers")
FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
NAMES = ["</s>", "<s>", "[PAD]", "<tool>", "<img>", "world", "<|endoftext|>", "<|pad|>", " tool ", "é日"]
TEXT = "<tool> hello</s>  world <img>x[PAD]worldly<s> é日 <|pad|> tool <tool><|endoftext|>"


def write(folder: Path, **files: Any) -> None:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value), "utf-8")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    Tokenizer.train(["hello world, hello tool"] * 5, vocab_size=300).save(folder)
    return folder


def same(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, once it is seen to be transformers'."""
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = Tokenizer.load(folder)
    described = [
        {number: (token.content, *(getattr(token, flag) for flag in FLAGS)) for number, token in tokens.items()}
        for tokens in (ours.backend.get_added_tokens_decoder(), theirs.added_tokens_decoder)
    ]
    assert described[0] == described[1]
    assert len(ours) == len(theirs)
    for role in ROLES:
        token = ours.special_token(role)
        assert token == getattr(theirs, f"{role}_token"), role
        assert token is None or ours.token_to_id(token) == getattr(theirs, f"{role}_token_id"), role
    ids = ours.encode(TEXT)
    assert ids == theirs(TEXT, add_special_tokens=False)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    return ours


tokens = st.sampled_from(NAMES)
flags = st.fixed_dictionaries({}, optional=dict.fromkeys(FLAGS, st.booleans()))
objects = st.builds(lambda content, given: {"__type": "AddedToken", "content": content} | given, tokens, flags)
role_keys = [f"{role}_token" for role in ROLES]
lists = st.lists(tokens, max_size=3, unique=True)
configs = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(role_keys, tokens | objects),
        "image_token": tokens,
        "additional_special_tokens": lists,
        "extra_special_tokens": lists | st.dictionaries(st.sampled_from(["a_token", "b"]), tokens, max_size=2),
        "added_tokens_decoder": st.dictionaries(
            st.integers(262, 300).map(str),
            st.builds(lambda content, given: {"content": content} | given, tokens, flags),
            max_size=3,
        ),
        "split_special_tokens": st.booleans(),
        "clean_up_tokenization_spaces": st.booleans(),
    },
)
maps = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(role_keys, tokens | st.builds(lambda c, g: {"content": c} | g, tokens, flags)),
        "additional_special_tokens": lists,
    },
)
added = st.dictionaries(tokens, st.integers(262, 300), max_size=3)


@given(config=configs, roles=st.none() | maps, numbered=st.none() | added)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_mixture_equals_transformers(
    base: Path, tmp_path_factory: pytest.TempPathFactory, config: Any, roles: Any, numbered: Any
) -> None:
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    write(folder, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"} | config)
    if roles is not None:
        write(folder, special_tokens_map=roles)
    if numbered is not None:
        write(folder, added_tokens=numbered)
    ours = same(folder)
    again = tmp_path_factory.mktemp("again")
    write(again, special_tokens_map={"eos_token": "<stale>"}, added_tokens={"<stale>": 400})
    ours.save(again)
    assert same(again).fingerprint == ours.fingerprint
