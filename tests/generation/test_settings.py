"""A model's own generation settings are read as transformers reads them; what is not offered is refused by name."""

import json

import pytest
from tiny_models import llama
from transformers import GenerationConfig

from quatrain.errors import InputError
from quatrain.generation.constraints import Rules
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.generation.settings import read_settings
from quatrain.models import hub
from quatrain.models.stack import Model

CONFIG = llama(vocab_size=60000, hidden_size=8)
TINY = Model(CONFIG)
SUMMARIES = {
    "bos_token_id": 0,
    "decoder_start_token_id": 2,
    "early_stopping": True,
    "eos_token_id": 2,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "length_penalty": 2.0,
    "max_length": 142,
    "min_length": 56,
    "no_repeat_ngram_size": 3,
    "num_beams": 4,
    "pad_token_id": 1,
}
TRANSLATION = {
    "bad_words_ids": [[58100]],
    "decoder_start_token_id": 58100,
    "eos_token_id": 0,
    "forced_eos_token_id": 0,
    "max_length": 512,
    "num_beams": 6,
    "renormalize_logits": True,
}
CHAT = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "num_beams": 1}


def settings_of(values, config=CONFIG):
    """The settings of a model that was read with this generation_config.json, or without one (None)."""
    model = TINY if config is CONFIG else Model(config)
    model.generation = values
    return read_settings(model)


def test_settings_of_published_checkpoints():
    summaries = settings_of(SUMMARIES)
    assert summaries.rules == Rules(
        decoder_start_token_id=2,
        forced_bos_token_id=0,
        forced_eos_token_id=(2,),
        min_length=56,
        no_repeat_ngram_size=3,
    )
    assert summaries.recommended == SamplingParams(num_beams=4, length_penalty=2.0, early_stopping=True)
    translation = settings_of(TRANSLATION)
    assert translation.rules == Rules(
        decoder_start_token_id=58100, forced_eos_token_id=(0,), bad_words_ids=((58100,),), renormalize_logits=True
    )
    chat = settings_of(CHAT)
    assert chat.recommended == SamplingParams(temperature=0.7, top_p=0.8, top_k=20)
    assert chat.rules == Rules(repetition_penalty=1.05)
    assert settings_of(CHAT | {"do_sample": False}).recommended == SamplingParams()


def test_what_transformers_writes_by_default_is_read():
    assert settings_of(GenerationConfig().to_dict()).rules == Rules()
    assert settings_of(GenerationConfig(do_sample=True).to_dict()).recommended.temperature == 1.0


def test_without_a_file_the_configuration_decides():
    config = CONFIG.with_(extra={"no_repeat_ngram_size": 3, "num_beams": 2}, bos_token_id=7)
    old = settings_of(None, config)
    assert old.rules == Rules(decoder_start_token_id=7, no_repeat_ngram_size=3) and old.recommended.num_beams == 2
    for file in ({}, {"min_length": 4}):
        assert settings_of(file, config).rules == Rules(decoder_start_token_id=7, **file)


def test_all_problems_at_once():
    with pytest.raises(InputError) as caught:
        settings_of(
            {
                "encoder_no_repeat_ngram_size": 3,
                "num_beam_groups": 2,
                "bad_words_ids": [[]],
                "min_length": -1,
                "forced_eos_token_id": [60000],
                "typical_p": 0.9,
            }
        )
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "encoder_no_repeat_ngram_size",
        "num_beam_groups",
        "forced_eos_token_id",
        "bad_words_ids",
        "min_length",
    ]
    for values in ({"do_sample": True, "typical_p": 0.9}, {"do_sample": True, "num_beams": 4}):
        with pytest.raises(InputError, match=list(values)[1]):
            settings_of(values)
    with pytest.raises(InputError, match="length_penalty"):
        settings_of({"length_penalty": 99})


def test_without_parameters_the_models_own_settings_decide(tmp_path):
    hub.save(Model(CONFIG.with_(vocab_size=40)).initialize(3), tmp_path)
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"num_beams": 3, "max_new_tokens": 5, "suppress_tokens": list(range(4, 20))}))
    engine = Engine.load(tmp_path)
    (own,) = engine.generate([[5, 6]])
    assert own == engine.generate([[5, 6]], SamplingParams(5, num_beams=3))[0]
    assert len(own.ids) == 5 and own.score is not None
    drawn = engine.generate([[4, 4]], SamplingParams(30, temperature=3.0, seed=0))[0].ids
    assert not set(drawn) & set(range(4, 20)) and set(drawn) - {2}
