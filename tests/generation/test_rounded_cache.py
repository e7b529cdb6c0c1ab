"""A KV cache of 8 or 4 bits: small errors, bytes as planned, and the same answers in any company."""

from itertools import pairwise

import battery
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from running import CONFIGS, SPEAKERS, prompts
from tiny_models import gpt2, llama, make_folder, random_model

from quatrain.cli import main
from quatrain.core.errors import InputError
from quatrain.generation.engine import Engine, SamplingParams
from quatrain.generation.runner import ModelRunner
from quatrain.models.classic.ngram import NgramModel
from quatrain.models.transformer.cache_forms import cache_form
from quatrain.models.transformer.kv_cache import KVCache
from quatrain.planning.counts import kv_cache_bytes

FORMS = ("int8", "int4")


@given(
    name=st.sampled_from(FORMS),
    width=st.sampled_from([1, 2, 3, 7, 8, 16, 33, 40, 64, 80, 96, 128]),
    scale=st.floats(1e-3, 1e4),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_the_error_is_half_a_step(name, width, scale, seed):
    form = cache_form(name, width)
    x = scale * torch.randn(2, 3, width, generator=torch.Generator().manual_seed(seed))
    stored = form.encode(x)
    assert stored.shape == (2, 3, form.row_bytes) and stored.dtype == torch.uint8
    grouped = x.unflatten(-1, (form.groups, form.group))
    spread = grouped.abs().amax(-1, keepdim=True)
    span = spread / 127 if name == "int8" else (grouped.amax(-1, keepdim=True) - grouped.amin(-1, keepdim=True)) / 15
    # Scale and minimum are rounded to bfloat16, which moves the ends of a group by up to 2**-8 of its largest value.
    allowed = 0.51 * span + (0 if name == "int8" else spread * 2**-7)
    error = (form.decode(stored, torch.float32) - x).unflatten(-1, (form.groups, form.group)).abs()
    assert (error <= allowed).all()
    assert form.decode(torch.zeros_like(stored), torch.float32).eq(0).all()
    assert form.decode(form.encode(torch.zeros_like(x)), torch.float32).eq(0).all()


@pytest.mark.parametrize("name", FORMS)
def test_what_is_not_finite_stays_so(name):
    form = cache_form(name, 32)
    x = torch.ones(3, 32)
    x[0, 5], x[1, 6] = float("nan"), float("inf")
    finite = form.decode(form.encode(x), torch.float32).isfinite()
    assert not finite[0].any() and not finite[1].all() and finite[2].all()


def _rounded(x, name, heads):
    """Keys or values as the cache reads them, by another route: the formula, one head at a time."""
    result = x.clone()
    for group in result.unflatten(-1, (heads, -1)).view(-1, x.shape[-1] // heads):
        if name == "int8":
            scale = (group.abs().max() / 127).bfloat16().float()
            group.copy_((group / scale).round() * scale)
        else:
            least = group.min().bfloat16().float()
            scale = ((group.max() - least) / 15).bfloat16().float()
            group.copy_(((group - least) / scale).round().clamp(0, 15) * scale + least)
    return result


@pytest.mark.parametrize("name", FORMS)
def test_attention_reads_the_rounded_numbers_and_nothing_else(name):
    model = random_model(gpt2())
    ids = torch.randint(0, 60, (2, 12), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        cached = model(ids, cache=KVCache(model.config, 2, 12, form=name))[0]
        plain = model(ids)[0]
        for block in model.layers:
            for layer in (block.self_attn.k_proj, block.self_attn.v_proj):
                layer.register_forward_hook(lambda _m, _i, output: _rounded(output, name, 4))
        expected = model(ids)[0]
    torch.testing.assert_close(cached, expected, atol=1e-5, rtol=1e-5)
    assert 1e-4 < (cached - plain).abs().max() < (0.05 if name == "int8" else 2)


@given(name=st.sampled_from(FORMS), case=st.sampled_from(sorted(CONFIGS)), cuts=st.sets(st.integers(1, 22), max_size=5))
@settings(max_examples=25, deadline=None)
def test_parts_equal_the_whole(name, case, cuts):
    model = random_model(CONFIGS[case])
    text = torch.randint(0, 60, (2, 23), generator=torch.Generator().manual_seed(1))
    cache = KVCache(model.config, 2, 0, form=name)
    with torch.inference_mode():
        whole = model(text, cache=KVCache(model.config, 2, 23, form=name))[0]
        parts = [model(text[:, a:b], cache=cache)[0] for a, b in pairwise([0, *sorted(cuts), 23])]
    error = (torch.cat(parts, 1) - whole).abs()
    # Other sums in another order may move a number over the border between two codes.
    assert error.median() < 1e-5 and error.max() < {"int8": 0.05, "int4": 0.5}[name]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("case", CONFIGS)
def test_in_any_company_and_from_the_cache(name, case):
    """Continuous batches, beams that are reordered, and texts that share their beginnings."""
    model = random_model(CONFIGS[case])
    texts = prompts(4, stem=range(30, 42), high=9)
    for params in (SamplingParams(8), SamplingParams(8, num_beams=3)):
        apart = [Engine(model, end_ids=[], kv_cache=name).generate([text], params)[0] for text in texts]
        engine = Engine(model, end_ids=[], max_rows=5, kv_cache=name)
        for _ in range(2):
            for done, expected in zip(engine.generate(texts, params, batch_size=6), apart, strict=True):
                assert done.ids == expected.ids
                assert done.logprobs == pytest.approx(expected.logprobs, abs={"int8": 5e-3, "int4": 0.05}[name])
    assert engine.scheduler.runner.cache.form == name


def test_an_encoder_decoder_rounds_both_attentions():
    case = next(each for each in SPEAKERS if each.seq2seq)
    model = battery.loaded(case)
    texts = prompts(3, seed=1)
    engine = Engine(model, end_ids=[], kv_cache="int8")
    together = engine.generate(texts, SamplingParams(6))
    for text, done in zip(texts, together, strict=True):
        assert Engine(model, end_ids=[], kv_cache="int8").generate([text], SamplingParams(6))[0].ids == done.ids
    pairs = engine.scheduler.runner.cache.cross_attention.values()
    assert all(tensor.dtype == torch.uint8 for pair in pairs for tensor in pair)


@pytest.mark.parametrize("name", FORMS)
def test_bytes_are_those_that_are_planned(name):
    config = llama(hidden_size=64, num_attention_heads=2, num_key_value_heads=2)
    cache = KVCache(config, 3, 50, form=name)
    assert cache.nbytes == kv_cache_bytes(config, 50, 3, name) == 2 * 2 * 2 * 3 * 50 * cache_form(name, 32).row_bytes
    assert ModelRunner(random_model(config), kv_cache=name).slot_bytes(3, 50) == cache.nbytes
    # 32 channels: 32 bytes and one scale, or 16 bytes and a scale with a minimum, instead of 128 bytes
    assert kv_cache_bytes(config, 50, 3) / cache.nbytes == {"int8": 128 / 34, "int4": 128 / 20}[name]


def test_a_cache_that_is_not_there_is_refused():
    with pytest.raises(InputError, match='kv_cache: "int2"; must be "int8" or "int4"'):
        Engine(random_model(llama()), kv_cache="int2")
    with pytest.raises(InputError, match="carries a state and has no KV cache"):
        Engine(NgramModel.fit([1, 2, 3], vocab_size=5, order=2), kv_cache="int8")


def test_the_verbs_take_it(tmp_path, capsys):
    folder = make_folder(tmp_path / "model")
    texts = []
    for words in ([], ["--kv-cache", "int8"], ["--kv-cache", "int4"]):
        assert main(["generate", str(folder), "abc", "--max-new-tokens", "8", "--no-stream", "--quiet", *words]) == 0
        texts.append(capsys.readouterr().out)
    assert all(text.startswith("abc") for text in texts)
    assert main(["generate", str(folder), "abc", "--kv-cache", "int2"]) == 2
    assert "int8" in capsys.readouterr().err
