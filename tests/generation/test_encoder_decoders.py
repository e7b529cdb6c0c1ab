"""T5, BART and Marian say what they say in transformers: greedily and by beams, by the rules of their own settings."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.models.transformer.stack import Model

VOCABULARY, CONTEXT = 40, 32
SIZES = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": CONTEXT,
}
OWN = {
    "t5": {},
    "flan": {"num_beams": 2, "max_length": 9},
    "bart": {
        "forced_bos_token_id": 0,
        "forced_eos_token_id": 2,
        "no_repeat_ngram_size": 3,
        "min_length": 6,
        "num_beams": 4,
        "length_penalty": 2.0,
        "early_stopping": True,
        "max_length": 20,
    },
    "marian": {
        "forced_eos_token_id": 0,
        "bad_words_ids": [[39], [5, 6]],
        "renormalize_logits": True,
        "num_beams": 3,
        "max_length": 14,
    },
}
"""Of each model's own settings, what is not said by its configuration."""


def reference(kind, seed):
    """A tiny transformers model whose weights are large enough that its logits vary."""
    import transformers as hf

    if kind in ("t5", "flan"):
        sizes = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        if kind == "flan":
            sizes |= {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
        theirs = hf.T5ForConditionalGeneration(hf.T5Config(decoder_start_token_id=0, **sizes))
    elif kind == "bart":
        theirs = hf.BartForConditionalGeneration(hf.BartConfig(**SIZES))
    else:
        tokens = {"pad_token_id": 39, "eos_token_id": 0, "bos_token_id": None, "decoder_start_token_id": 39}
        theirs = hf.MarianMTModel(hf.MarianConfig(**SIZES, **tokens))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if kind == "marian" and "embed_positions" in name:
                continue  # sines, which its files do not hold
            is_norm = "norm" in name and name.endswith("weight")
            parameter.copy_(is_norm + 0.3 * torch.randn(parameter.shape, generator=generator))
    for name, value in OWN[kind].items():
        setattr(theirs.generation_config, name, value)
    return theirs.eval()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Their model and our engine by kind and seed, with the same files."""
    made = {}

    def make(kind, seed=0):
        if (kind, seed) not in made:
            folder = tmp_path_factory.mktemp(f"{kind}{seed}")
            theirs = reference(kind, seed)
            theirs.save_pretrained(folder)
            made[kind, seed] = theirs, Engine.load(folder)
        return made[kind, seed]

    return make


def prompts(count, seed, low=1, high=10):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (count,), generator=generator).tolist()
    return [torch.randint(3, VOCABULARY - 1, (n,), generator=generator).tolist() for n in lengths]


def assert_equal(theirs, engine, texts, params=None, **options):
    """Ours and theirs in one batch of ragged prompts; `options` say theirs what `params` say ours."""
    pad, width = theirs.config.pad_token_id, max(map(len, texts))
    ids = torch.tensor([text + [pad] * (width - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
    rows = theirs.generate(ids, attention_mask=mask, do_sample=False, **options)[:, 1:].tolist()
    found = engine.generate(texts, params)
    # A row that ends before the others is filled up with padding, or the end token where padding is token 0.
    fills = {pad, theirs.config.eos_token_id}
    for each, row in zip(found, rows, strict=True):
        assert each.ids == row[: len(each.ids)]
        assert set(row[len(each.ids) :]) <= fills
    return found


KINDS = ["t5", "flan", "bart", "marian"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 2, 3, 5])
def test_ids_of_transformers(pair, kind, beams):
    theirs, engine = pair(kind)
    lengths = set()
    for penalty, early in itertools.product([0.0, 1.0, 2.0, -1.0] if beams > 1 else [1.0], [False, True, "never"]):
        options = {"num_beams": beams, "length_penalty": penalty, "early_stopping": early}
        params = SamplingParams(12, **options)
        found = assert_equal(theirs, engine, prompts(6, seed=beams), params, max_new_tokens=12, **options)
        lengths |= {len(each.ids) for each in found}
    assert max(lengths) > 3


@pytest.mark.parametrize("kind", ["flan", "bart", "marian"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_models_own_settings_decide(pair, kind, seed):
    theirs, engine = pair(kind, seed)
    found = assert_equal(theirs, engine, prompts(6, seed=7))
    assert all(each.score is not None and len(each.ids) < OWN[kind]["max_length"] for each in found)
    if kind == "bart":
        assert all(each.ids[0] == 0 and each.ids[-1] == 2 and len(each.ids) >= 5 for each in found)
    if kind == "marian":
        assert not any(39 in each.ids for each in found)


@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2),
    texts=st.lists(st.lists(st.integers(3, VOCABULARY - 2), min_size=1, max_size=12), min_size=1, max_size=4),
    beams=st.integers(1, 5),
    more=st.fixed_dictionaries(
        {},
        optional={
            "length_penalty": st.sampled_from([-1.0, 0.0, 0.5, 1.5]),
            "repetition_penalty": st.sampled_from([0.8, 1.0, 1.6]),
            "no_repeat_ngram_size": st.integers(0, 3),
            "min_new_tokens": st.integers(0, 6),
        },
    ),
    early=st.sampled_from([False, True, "never"]),
)
@settings(max_examples=40, deadline=None)
def test_any_settings_give_what_transformers_gives(pair, kind, seed, texts, beams, more, early):
    theirs, engine = pair(kind, seed)
    more = {"length_penalty": 1.0, "early_stopping": early, "num_beams": beams, **more}
    # theirs adds min_new_tokens to the model's own min_length, ours takes its place
    theirs_only = {"min_length": 0} if "min_new_tokens" in more else {}
    assert_equal(theirs, engine, texts, SamplingParams(9, **more), max_new_tokens=9, **more, **theirs_only)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 3])
def test_batched_equals_single_and_uncached(pair, kind, beams):
    _, engine = pair(kind)
    texts, params = prompts(9, seed=11), SamplingParams(10, num_beams=beams)
    together = engine.generate(texts, params, batch_size=4 * beams)
    assert [each.ids for each in together] == [engine.generate([text], params)[0].ids for text in texts]
    start = engine.rules.decoder_start_token_id
    for text, each in zip(texts, together, strict=True):
        with torch.no_grad():
            logits, _ = engine.model(torch.tensor([text]), decoder_input_ids=torch.tensor([[start, *each.ids[:-1]]]))
        own = logits[0].log_softmax(-1).gather(1, torch.tensor(each.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(each.logprobs), own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_depends_on_the_prompt_and_seed_alone(pair, kind):
    _, engine = pair(kind)
    texts, params = prompts(9, seed=12), SamplingParams(10, temperature=1.0, top_k=20, seed=5)
    together = engine.generate(texts, params, batch_size=4)
    assert [each.ids for each in together] == [engine.generate([text], params)[0].ids for text in texts]
    assert engine.generate(texts, SamplingParams(10, temperature=1.0, top_k=20, seed=6)) != together


def test_contexts_are_counted_apart(pair):
    _, bart = pair("bart")
    (filled,) = bart.generate([[5] * CONTEXT], SamplingParams(100, ignore_eos=True))
    assert len(filled.ids) == CONTEXT - 1 and filled.finish_reason == "length"
    with pytest.raises(InputError) as caught:
        bart.generate([[5] * (CONTEXT + 1)], SamplingParams(1))
    assert caught.value.problems == [f"prompt 1: {CONTEXT + 1} tokens; the model reads {CONTEXT}"]
    _, t5 = pair("t5")
    assert len(t5.generate([[5] * 600], SamplingParams(520, ignore_eos=True))[0].ids) == 520, "relative: no end"


class Words:
    """A tokenizer that adds an end token, as those of encoders do."""

    bos_id, eos_id, special_ids, stop_ids = None, 1, frozenset({0, 1}), frozenset({1})

    def encode(self, text, *, special_tokens=False):
        return [*(3 + ord(letter) - ord("a") for letter in text), *([1] if special_tokens else [])]

    def decode(self, ids, *, skip_special_tokens=True):
        return "".join(chr(ord("a") + i - 3) for i in ids if 3 <= i < 29)

    def token_to_id(self, token):
        return None


def test_the_encoder_reads_the_end_token(pair):
    _, t5 = pair("t5")
    engine = Engine(t5.model, Words())
    assert engine.encode("abc") == [3, 4, 5, 1]
    (whole,) = engine.generate(["abc"], SamplingParams(12))
    assert whole.ids == t5.generate([[3, 4, 5, 1]], SamplingParams(12))[0].ids
    assert "".join(engine.stream("abc", SamplingParams(12))) == whole.text


class Shouts(Words):
    """What the decoder says, in capitals, with another end token."""

    eos_id, stop_ids = 2, frozenset({2})

    def decode(self, ids, *, skip_special_tokens=True):
        return super().decode(ids).upper()


def test_what_is_said_may_have_a_tokenizer_of_its_own(pair):
    _, t5 = pair("t5")
    plain, params = Engine(t5.model, Words()), SamplingParams(12, ignore_eos=True)
    both = Engine(t5.model, Words(), target_tokenizer=Shouts())
    (low,), (high,) = plain.generate(["abc"], params), both.generate(["abc"], params)
    assert (high.ids, high.text) == (low.ids, low.text.upper()) and low.text != high.text
    assert 2 in both.end_ids and 2 not in plain.end_ids
    letter = high.text[2]
    (stopped,) = both.generate(["abc"], SamplingParams(12, ignore_eos=True, stop=letter))
    assert stopped.text == high.text[: high.text.index(letter)] and stopped.finish_reason == "stop"


def test_a_decoder_that_cannot_begin_is_told(pair):
    model = Model(pair("t5")[1].model.config)
    model.generation_config = {"decoder_start_token_id": VOCABULARY}
    with pytest.raises(InputError, match=f"token {VOCABULARY} is not in the model's vocabulary"):
        Engine(model)
    with pytest.raises(InputError, match="decoder_start_token_id"):
        Engine(Model(model.config.replace(decoder_start_token_id=None)))
