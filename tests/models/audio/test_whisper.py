"""Whisper as a family: outputs, files, counts and generated tokens are those of transformers."""

import pytest
import torch
import transformers
from tiny_whisper import (
    END,
    FIRST,
    GENERATION,
    GERMAN,
    NO_TIMES,
    PREVIOUS,
    SIZES,
    SOUNDS,
    START,
    TRANSCRIBE,
    TRANSLATE,
    theirs,
)

from quatrain.core.errors import InputError
from quatrain.generation.engine import Engine
from quatrain.generation.params import SamplingParams
from quatrain.generation.timestamps import TimestampRules
from quatrain.models.families import get_family
from quatrain.models.io import model_folder
from quatrain.models.transformer.context import Trace
from quatrain.models.transformer.kv_cache import KVCache
from quatrain.models.transformer.stack import Model
from quatrain.planning import counts
from quatrain.planning.facts import load_facts

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
IDS = torch.randint(0, 60, (3, 7), generator=torch.Generator().manual_seed(2))
CONFIG = {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"]}


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    theirs().save_pretrained(folder)
    return model_folder.load(folder)


@torch.no_grad()
def test_logits_hidden_states_and_attentions(ours):
    expected = theirs()(input_features=SOUNDS, decoder_input_ids=IDS, output_attentions=True, output_hidden_states=True)
    trace = Trace()
    logits, _ = ours(features=SOUNDS, decoder_input_ids=IDS, trace=trace)
    torch.testing.assert_close(logits, expected.logits, **TOLERANCE)
    torch.testing.assert_close(ours(features=SOUNDS, decoder_input_ids=IDS)[0], expected.logits, **TOLERANCE)
    pairs = {
        "hidden_states": "decoder_hidden_states", "attentions": "decoder_attentions",
        "cross_attentions": "cross_attentions", "encoder_hidden_states": "encoder_hidden_states",
        "encoder_attentions": "encoder_attentions",
    }  # fmt: skip
    for own, other in pairs.items():
        found = getattr(trace, own)
        assert len(found) == len(getattr(expected, other))
        for one, two in zip(found, getattr(expected, other), strict=True):
            torch.testing.assert_close(one, two, **TOLERANCE)


@torch.no_grad()
def test_loss_gradients_and_cached_steps(ours):
    labels = IDS.masked_fill(torch.rand(IDS.shape, generator=torch.Generator().manual_seed(3)) < 0.3, -100)
    loss = ours(features=SOUNDS, labels=labels)[1].sum() / (labels != -100).sum()
    torch.testing.assert_close(loss, theirs()(input_features=SOUNDS, labels=labels).loss, **TOLERANCE)
    cache = KVCache(ours.config, 3, 8)
    first = ours(features=SOUNDS, decoder_input_ids=IDS[:, :4], cache=cache)[0]
    rest = ours(decoder_input_ids=IDS[:, 4:], cache=cache)[0]
    whole = ours(features=SOUNDS, decoder_input_ids=IDS)[0]
    torch.testing.assert_close(torch.cat((first, rest), 1), whole, **TOLERANCE)


@pytest.mark.parametrize("kind", ["WhisperForConditionalGeneration", "WhisperModel"])
def test_files_both_ways(kind, tmp_path):
    theirs(kind).save_pretrained(tmp_path / "theirs")
    model = model_folder.load(tmp_path / "theirs")
    model_folder.save(model, tmp_path / "ours")
    back, info = getattr(transformers, kind).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values())
    for (name, one), (other_name, other) in zip(theirs(kind).named_parameters(), back.named_parameters(), strict=True):
        assert name == other_name and torch.equal(one, other)
    assert model.num_parameters() == theirs(kind).num_parameters()
    assert model_folder.load(tmp_path / "ours").config == model.config


def test_whisper_tiny_has_its_published_count():
    config = get_family("whisper").from_hf(CONFIG | transformers.WhisperConfig().to_dict())
    assert counts.parameters(config) == 37_760_640
    assert config.encoder.position == "none" and config.frontend.num_vectors == 1500


@pytest.mark.parametrize("name", ["whisper-base", "whisper-large-v3"])
def test_the_published_counts_of_larger_models_are_those_of_transformers(name):
    published = load_facts().models[name]
    heads = published.config["d_model"] // 64
    sizes = transformers.WhisperConfig(
        **{key: value for key, value in published.config.items() if key != "model_type"},
        encoder_attention_heads=heads, decoder_attention_heads=heads,
    )  # fmt: skip
    with torch.device("meta"):
        reference = transformers.WhisperForConditionalGeneration(sizes)
    assert reference.num_parameters() == published.parameters
    assert counts.parameters(get_family("whisper").from_hf(CONFIG | sizes.to_dict())) == published.parameters


def test_fresh_weights_have_the_sinusoids_of_transformers():
    config = get_family("whisper").from_hf({**CONFIG, **{key: value for key, value in SIZES.items() if value}})
    model = Model(config).initialize(5)
    table = model.encoder.frontend.timing_table
    fresh = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**SIZES))
    torch.testing.assert_close(table, fresh.model.encoder.embed_positions.weight)
    assert not table.requires_grad and all(
        weight.requires_grad for name, weight in model.named_parameters() if not name.endswith("timing_table")
    )
    assert model.encoder.frontend.conv1.weight.std() > 0


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("times", [False, True], ids=["no times", "times"])
def test_generated_tokens_are_those_of_transformers(ours, beams, times):
    expected = theirs().generate(
        input_features=SOUNDS, language="de", task="translate", return_timestamps=times, num_beams=beams,
        max_new_tokens=18, force_unique_generate_call=True,
    )  # fmt: skip
    prompt = [START, GERMAN, TRANSLATE, *([] if times else [NO_TIMES])]
    rules = (TimestampRules(FIRST, END, len(prompt), 10),) if times else ()
    found = Engine(ours).generate_from(
        SOUNDS, SamplingParams(18, num_beams=beams, logits_processors=rules), decoder_prompts=[prompt] * 3
    )
    assert [prompt + each.ids for each in found] == [[t for t in row if t != END] for row in expected.tolist()]


def test_a_context_before_the_start_token_is_read_as_transformers_do(ours):
    prompt = torch.tensor([PREVIOUS, 7, 8, 9])
    expected = theirs().generate(
        input_features=SOUNDS[:1], language="de", task="transcribe", prompt_ids=prompt, max_new_tokens=9,
        force_unique_generate_call=True,
    )  # fmt: skip
    read = [*prompt.tolist(), START, GERMAN, TRANSCRIBE, NO_TIMES]
    (found,) = Engine(ours).generate_from(SOUNDS[:1], SamplingParams(9), decoder_prompts=[read])
    assert read + found.ids == [token for token in expected[0].tolist() if token != END]


def test_rows_do_not_depend_on_their_batch_and_equal_sounds_are_encoded_once(ours):
    engine, calls = Engine(ours), []
    handle = ours.encoder.register_forward_hook(lambda *_: calls.append(1))
    run = ours.encoder.run
    ours.encoder.run = lambda *args, **more: calls.append(1) or run(*args, **more)
    try:
        together = engine.generate_from(SOUNDS, SamplingParams(9))
        alone = [engine.generate_from(row[None], SamplingParams(9))[0] for row in SOUNDS]
        assert [each.ids for each in together] == [each.ids for each in alone]
        calls.clear()
        engine.generate_from(SOUNDS[:1], SamplingParams(3), decoder_prompts=[[START, GERMAN]])
        before = len(calls)
        engine.generate_from(SOUNDS[:1], SamplingParams(3), decoder_prompts=[[START, GERMAN, TRANSCRIBE]])
        assert len(calls) == before
        drawn = [engine.generate_from(SOUNDS, SamplingParams(9, temperature=1.0, seed=4)) for _ in range(2)]
        assert [each.ids for each in drawn[0]] == [each.ids for each in drawn[1]]
    finally:
        handle.remove()
        ours.encoder.run = run


def test_what_does_not_fit_is_told(ours):
    for wrong in (SOUNDS[:, :15], torch.zeros(1, 16, 102), SOUNDS[0]):
        with pytest.raises(InputError, match="16 mel bands, 1 to 100 frames"):
            ours(features=wrong, decoder_input_ids=IDS[:1])
    engine = Engine(ours)
    with pytest.raises(InputError, match="reads no tokens"):
        engine.generate([[5, 6]], SamplingParams(2))
    with pytest.raises(InputError, match="40 tokens; must be 1 to 39"):
        engine.generate_from(SOUNDS[:1], decoder_prompts=[[START] * 40])
    with pytest.raises(InputError, match="not in the vocabulary of 121"):
        engine.generate_from(SOUNDS[:1], decoder_prompts=[[500]])
    with pytest.raises(InputError, match="num_mel_bins"):
        get_family("whisper").from_hf(CONFIG | {**SIZES, "num_mel_bins": "many"})


def test_generation_settings_of_whisper_are_read(ours):
    assert ours.generation_config["lang_to_id"] == GENERATION["lang_to_id"]
    rules = Engine(ours).rules
    assert rules.suppress_tokens == tuple(GENERATION["suppress_tokens"]) and rules.begin_suppress_tokens == (5, END)
