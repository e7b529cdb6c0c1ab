"""A model's own generation settings are read as transformers reads them; what is not offered is refused by name."""

import json

import pytest
from tiny_models import llama
from transformers import GenerationConfig

from quatrain.core.errors import InputError
from quatrain.generation.config import HARMLESS, RECOMMENDED, RULES, SAMPLED, UNKNOWN, read_generation_config
from quatrain.generation.constraints import GenerationRules
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model

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
    model.generation_config = values
    return read_generation_config(model)


def test_settings_of_published_checkpoints():
    summaries = settings_of(SUMMARIES)
    assert summaries.rules == GenerationRules(
        decoder_start_token_id=2,
        forced_bos_token_id=0,
        forced_eos_token_id=(2,),
        min_length=56,
        no_repeat_ngram_size=3,
    )
    assert summaries.recommended == SamplingParams(num_beams=4, length_penalty=2.0, early_stopping=True)
    translation = settings_of(TRANSLATION)
    assert translation.rules == GenerationRules(
        decoder_start_token_id=58100, forced_eos_token_id=(0,), bad_words_ids=((58100,),), renormalize_logits=True
    )
    chat = settings_of(CHAT)
    assert chat.recommended == SamplingParams(temperature=0.7, top_p=0.8, top_k=20)
    assert chat.rules == GenerationRules(repetition_penalty=1.05)
    assert settings_of(CHAT | {"do_sample": False}).recommended == SamplingParams()


def test_what_transformers_writes_by_default_is_read():
    assert settings_of(GenerationConfig().to_dict()).rules == GenerationRules()
    assert settings_of(GenerationConfig(do_sample=True).to_dict()).recommended.temperature == 1.0


def test_without_a_file_the_configuration_decides():
    config = CONFIG.replace(extra={"no_repeat_ngram_size": 3, "num_beams": 2}, bos_token_id=7)
    old = settings_of(None, config)
    assert old.rules == GenerationRules(decoder_start_token_id=7, no_repeat_ngram_size=3)
    assert old.recommended.num_beams == 2
    for file in ({}, {"min_length": 4}):
        assert settings_of(file, config).rules == GenerationRules(decoder_start_token_id=7, **file)


def test_all_problems_at_once():
    with pytest.raises(InputError) as caught:
        settings_of(
            {
                "encoder_no_repeat_ngram_size": -3,
                "diversity_penalty": 2.0,
                "bad_words_ids": [[]],
                "min_length": -1,
                "forced_eos_token_id": [60000],
                "typical_p": 0.9,
                "guidance_scale": -1.5,
            }
        )
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "forced_eos_token_id",
        "bad_words_ids",
        "min_length",
        "encoder_no_repeat_ngram_size",
        "diversity_penalty",
        "guidance_scale",
    ]
    for values in ({"do_sample": True, "typical_p": 9}, {"do_sample": True, "num_beams": 4}):
        with pytest.raises(InputError, match=list(values)[1]):
            settings_of(values)
    with pytest.raises(InputError, match="length_penalty"):
        settings_of({"length_penalty": 99})


def test_without_parameters_the_models_own_settings_decide(tmp_path):
    model_folder.save(Model(CONFIG.replace(vocab_size=40)).initialize(3), tmp_path)
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"num_beams": 3, "max_new_tokens": 5, "suppress_tokens": list(range(4, 20))}))
    engine = Engine.load(tmp_path)
    (own,) = engine.generate([[5, 6]])
    assert own == engine.generate([[5, 6]], SamplingParams(5, num_beams=3))[0]
    assert len(own.ids) == 5 and own.score is not None
    drawn = engine.generate([[4, 4]], SamplingParams(30, temperature=3.0, seed=0))[0].ids
    assert not set(drawn) & set(range(4, 20)) and set(drawn) - {2}


def test_every_key_of_transformers_is_honoured_harmless_or_refused():
    keys = set(GenerationConfig().to_dict())
    honoured = {
        *RULES,
        *RECOMMENDED,
        *SAMPLED,
        "force_words_ids",
        "do_sample",
        "max_length",
        "eos_token_id",
        "bos_token_id",
    }
    groups = [honoured, {*HARMLESS}, {*UNKNOWN}]
    assert keys <= set().union(*groups)
    assert sum(map(len, groups)) == len(set().union(*groups)), "each has one place"
    for name in UNKNOWN:
        with pytest.raises(InputError, match=name):
            settings_of({name: "something else"})


def test_recommended_sampling_is_read():
    read = settings_of(
        {"do_sample": True, "top_k": 0, "typical_p": 0.9, "epsilon_cutoff": 0.01, "eta_cutoff": 0.0, "top_h": 0.5}
    ).recommended
    assert read == SamplingParams(temperature=1.0, typical_p=0.9, epsilon_cutoff=0.01, eta_cutoff=0.0, top_h=0.5)
    rules = settings_of(
        {"sequence_bias": [[[4, 5], 1.5], [[6], -2]], "exponential_decay_length_penalty": [3, 1.2], "stop_strings": "x"}
    ).rules
    assert rules == GenerationRules(
        sequence_bias=(((4, 5), 1.5), ((6,), -2.0)), exponential_decay_length_penalty=(3, 1.2), stop_strings=("x",)
    )
    assert settings_of({"max_length": 9}).max_length == 9
    both = settings_of({"max_length": 9, "max_new_tokens": 3})
    assert (both.recommended.max_new_tokens, both.max_length) == (3, None)


WRONG = [True, -1, 10**30, float("nan"), float("inf"), 1.5, "x", "", [], [1], [None], [[]], [[[]]], {}, {"a": 1}]
KEYS = sorted({*GenerationConfig().to_dict()} - {"_from_model_config", "transformers_version"})


@pytest.mark.parametrize("key", KEYS)
def test_wrong_types_are_refused_by_name_or_mean_nothing(key):
    for value in WRONG:
        for more in ({}, {"do_sample": True}):
            try:
                read = settings_of({**more, key: value})
            except InputError as error:
                assert key in str(error), (key, value)
            else:
                assert isinstance(read.recommended, SamplingParams)


def test_max_length_counts_the_prompt():
    model = Model(CONFIG.replace(vocab_size=40)).initialize(3)
    model.generation_config = {"max_length": 6, "eos_token_id": []}
    engine = Engine(model, end_ids=[])
    assert [len(done.ids) for done in engine.generate([[5, 6], [5, 6, 7, 8]])] == [4, 2]
    assert len(engine.generate([[5] * 6], SamplingParams(9))[0].ids) == 9, "the caller's parameters go before"
    with pytest.raises(InputError, match="max_length"):
        engine.generate([[5] * 6])


def test_searches_that_transformers_5_has_removed_are_read():
    diverse = settings_of({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "force_words_ids": []})
    assert diverse.recommended == SamplingParams(num_beams=4, num_beam_groups=2, diversity_penalty=0.5)
    forced = settings_of({"num_beams": 4, "force_words_ids": [[5], [[6, 7], [8]]]})
    assert forced.recommended == SamplingParams(num_beams=4, force_words=[[5], [[6, 7], [8]]])
    contrastive = settings_of({"penalty_alpha": 0.6, "top_k": 4})
    assert contrastive.recommended == SamplingParams(penalty_alpha=0.6, top_k=4)
    assert settings_of({"penalty_alpha": 0.6}).recommended.top_k == 50
    assert settings_of({"penalty_alpha": 0.6, "do_sample": True, "top_k": 4}).recommended.penalty_alpha == 0
    assert settings_of({"guidance_scale": 1.5}).recommended.guidance_scale == 1.5
    with pytest.raises(InputError, match="force_words_ids: "):
        settings_of({"num_beams": 4, "force_words_ids": [["x", []]]})
