"""Sizes alone make a configuration of every family, one that its config.json can say."""

from typing import get_args

import battery
import pytest
import torch

from quatrain.core.errors import InputError
from quatrain.models.families import get_family
from quatrain.models.families.fresh import fresh_config
from quatrain.models.transformer import settings
from quatrain.models.transformer.settings import ModelSettings
from quatrain.models.transformer.stack import Model
from quatrain.runs.settings import HEAD_OF_OBJECTIVE

SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 3,
         "num_attention_heads": 4, "max_position_embeddings": 24}  # fmt: skip
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@pytest.mark.parametrize("name", battery.text_families())
def test_every_family(name):
    config = fresh_config(name, SIZES | TOKENS)
    recurrent = {"num_attention_heads": "recurrent_heads"} if name in settings.WITHOUT_ATTENTION else {}
    for field, value in (SIZES | TOKENS).items():
        if field == "intermediate_size" and name in settings.WITHOUT_FEED_FORWARD:
            assert config.intermediate_size == 0
        else:
            assert getattr(config, recurrent.get(field, field)) == value
    assert recurrent or (config.head_dim == 8 and config.num_key_value_heads == 4)
    model = Model(config).initialize(0)
    more = {"decoder_input_ids": torch.ones(2, 5, dtype=torch.long)} if model.encoder is not None else {}
    if model.encoder is not None:
        assert len(model.encoder.layers) == 3
    logits, _ = model(torch.full((2, 24), 5), **more)
    assert logits.shape[-1] == 61 and logits.isfinite().all()


def test_the_lists_of_settings_are_those_of_the_families():
    decoders = {
        name for name in battery.text_families() if fresh_config(name, SIZES | TOKENS).architecture == "decoder"
    }
    assert set(get_args(settings.DecoderFamily)) == decoders
    others = set(settings.ENCODERS) | set(settings.ENCODER_DECODERS)
    for name in decoders | others:
        config = ModelSettings(family=name, hidden_size=32).config(61, pad_token_id=0)
        assert (config.feed_forward == "plain") == (name in settings.PLAIN_FEED_FORWARD)
        assert (config.experts is not None) == (name in settings.MIXTURES)
        assert (config.position != "rotary") == (name in settings.NOT_ROTARY)
        assert (not config.attends) == (name in settings.WITHOUT_ATTENTION)
        assert (config.feed_forward == "none") == (name in settings.WITHOUT_FEED_FORWARD)
        encodes = {"encoder": settings.ENCODERS, "encoder-decoder": settings.ENCODER_DECODERS}
        assert name in encodes.get(config.architecture, decoders)
        grouped = True
        try:
            fresh_config(name, SIZES | {"num_key_value_heads": 2})
        except InputError as error:
            grouped = False
            assert any(problem.startswith("num_key_value_heads: 2") for problem in error.problems)
        assert grouped == (name not in settings.NO_GROUPED_QUERIES)


@pytest.mark.parametrize("head", sorted(set(HEAD_OF_OBJECTIVE.values())))
def test_the_table_of_heads_agrees_with_the_families(head):
    every = (*settings.DECODERS, *settings.ENCODERS, *settings.ENCODER_DECODERS)
    found = set(settings.families_with_head(head)) - set(settings.CLASSIC)  # which have a test of their own
    assert found == {name for name in every if head in get_family(name).heads}


def test_what_a_family_cannot_have_is_told_at_once():
    with pytest.raises(InputError) as caught:
        fresh_config("bloom", SIZES | {"intermediate_size": 50, "num_key_value_heads": 2})
    assert {problem.split(":")[0] for problem in caught.value.problems} == {"intermediate_size", "num_key_value_heads"}
