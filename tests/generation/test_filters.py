"""The processors keep what transformers' warpers keep, and a draw follows the distribution it inverts."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError, QuatrainError
from quatrain.generation.filters import draw, processors
from quatrain.generation.params import SamplingParams


def reference(logits, params):
    from transformers.generation import logits_process as theirs

    chain = []
    if params.temperature != 1:
        chain.append(theirs.TemperatureLogitsWarper(params.temperature))
    if params.top_h is not None:
        chain.append(theirs.TopHLogitsWarper(params.top_h))
    if params.top_k is not None:
        chain.append(theirs.TopKLogitsWarper(params.top_k))
    if params.top_p is not None and params.top_p < 1:
        chain.append(theirs.TopPLogitsWarper(params.top_p))
    if params.min_p:
        chain.append(theirs.MinPLogitsWarper(params.min_p))
    if params.typical_p is not None and params.typical_p < 1:
        chain.append(theirs.TypicalLogitsWarper(params.typical_p))
    if params.epsilon_cutoff:
        chain.append(theirs.EpsilonLogitsWarper(params.epsilon_cutoff))
    if params.eta_cutoff:
        chain.append(theirs.EtaLogitsWarper(params.eta_cutoff))
    for warper in chain:
        logits = warper(None, logits)
    return logits


@given(
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.7]),
    top_k=st.sampled_from([None, 1, 3, 20, 500]),
    top_p=st.sampled_from([None, 0.1, 0.6, 0.95, 1.0]),
    min_p=st.sampled_from([None, 0.0, 0.05, 0.4, 1.0]),
    scale=st.sampled_from([0.0, 0.5, 3.0, 30.0]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=150, deadline=None)
def test_warped_distribution_equals_transformers(temperature, top_k, top_p, min_p, scale, seed):
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(seed)) * scale
    ours = logits
    for process in processors(params):
        ours = process(ours)
    theirs = reference(logits, params)
    assert torch.equal(torch.isinf(ours), torch.isinf(theirs))
    torch.testing.assert_close(ours.softmax(-1), theirs.softmax(-1), atol=1e-6, rtol=0)
    assert torch.isfinite(ours).any(dim=-1).all(), "every row keeps a token"


@given(
    name=st.sampled_from(["typical_p", "epsilon_cutoff", "eta_cutoff", "top_h"]),
    value=st.sampled_from([1e-4, 0.02, 0.3, 0.9, 0.999]),
    temperature=st.sampled_from([0.5, 1.0]),
    scale=st.sampled_from([0.0, 0.5, 3.0, 30.0]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=100, deadline=None)
def test_rarer_filters_equal_transformers(name, value, temperature, scale, seed):
    params = SamplingParams(temperature=temperature, **{name: value})
    logits = torch.randn(4, 150, generator=torch.Generator().manual_seed(seed)) * scale
    ours = logits
    for process in processors(params):
        ours = process(ours)
    assert torch.equal(ours, reference(logits, params))


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("top_k", [None, 40])
def test_top_p_of_a_large_vocabulary_equals_transformers(share, top_k):
    """Peaked rows, whose likeliest tokens suffice, beside flat ones, which are sorted.

    Of a flat row, transformers' sum of 20,000 small numbers in float32 is only right to about 1e-4.
    """
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([[8.0], [3.0], [0.5], [0.0], [30.0]])
    logits = torch.randn(5, 20_000, generator=generator) * scales + torch.rand(5, 20_000, generator=generator) * 1e-3
    params = SamplingParams(temperature=1.0, top_p=share, top_k=top_k)
    ours = logits
    for process in processors(params):
        ours = process(ours)
    theirs = reference(logits, params)
    kept, expected = torch.isfinite(ours), torch.isfinite(theirs)
    assert torch.equal(kept[[0, 1, 4]], expected[[0, 1, 4]])
    differs = (kept ^ expected).float() * logits.softmax(-1)
    assert differs.sum(-1).max() < 2e-4, "tokens at the border"
    for row in range(5):
        alone = logits[row : row + 1]
        for process in processors(params):
            alone = process(alone)
        assert torch.equal(alone[0], ours[row])


FILTERS = {
    "top_k": [1, 10**30],
    "top_p": [1e-38, 1e-300, 1.0],
    "min_p": [0.0, 1e-38, 1.0],
    "typical_p": [1e-38, 1.0],
    "epsilon_cutoff": [0.0, 1e-38, 1.0],
    "eta_cutoff": [0.0, 1e-38, 1.0],
    "top_h": [1e-38, 1.0],
}


@given(
    temperature=st.sampled_from([1e-320, 1e-46, 1e-38, 1e-30, 1.0, 1e30, 1e38, 1e300, 10**30]),
    filters=st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in FILTERS.items()}),
    scale=st.sampled_from([0.0, 1.0, 1e4, 1e30]),
    edge=st.sampled_from([0.0, 0.5, 1 - 2**-53]),
    seed=st.integers(0, 100),
)
@settings(max_examples=200, deadline=None)
def test_parameters_at_their_ends_keep_a_token(temperature, filters, scale, edge, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 30, generator=generator) * scale
    logits = logits.masked_fill(torch.rand(5, 30, generator=generator) < 0.5, float("-inf"))
    logits[:, 7] = torch.arange(5) * scale
    ours = logits
    for process in processors(SamplingParams(temperature=temperature, **filters)):
        ours = process(ours)
    tokens = draw(ours, torch.full((5,), edge, dtype=torch.float64))[:, None]
    assert torch.isfinite(logits.gather(1, tokens)).all(), "no token that is out"
    if temperature < 1e-29 and scale >= 1:
        assert torch.equal(tokens[:, 0], logits.argmax(dim=-1))


def test_nothing_left_and_broken_logits_are_refused():
    half = torch.tensor([0.5])
    with pytest.raises(InputError, match="Every token of the vocabulary is ruled out"):
        draw(torch.full((1, 4), float("-inf")), half)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(QuatrainError, match="not finite"):
            draw(torch.tensor([[0.0, wrong, 1.0]]), half)


WRONG = [True, -1, -1e-300, float("nan"), float("inf"), float("-inf"), "1", [], {}, [1], object()]


@pytest.mark.parametrize("name", [field.name for field in fields(SamplingParams)])
def test_wrong_values_are_refused_by_name(name):
    for value in WRONG:
        try:
            SamplingParams(**{name: value})
        except InputError as error:
            assert all(name in problem for problem in error.problems), (value, error)


def test_greedy_has_no_processors():
    assert processors(SamplingParams(temperature=0.0, top_k=5, top_p=0.5)) == []


def test_draw_follows_the_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.0, 0.3, 0.2]]))
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    tokens = draw(logits.expand(10_000, -1), uniform)
    shares = torch.bincount(tokens, minlength=4) / 10_000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.0, 0.3, 0.2]), atol=2e-4, rtol=0)


@given(seed=st.integers(0, 1000), edge=st.sampled_from([0.0, 1 - 2**-53, 0.5]))
@settings(max_examples=50, deadline=None)
def test_draw_never_takes_a_token_that_is_out(seed, edge):
    logits = torch.randn(3, 30, generator=torch.Generator().manual_seed(seed)) * 8
    out = torch.rand(3, 30, generator=torch.Generator().manual_seed(seed + 1)) < 0.8
    out[:, 7] = False
    tokens = draw(logits.masked_fill(out, float("-inf")), torch.full((3,), edge, dtype=torch.float64))
    assert not out.gather(1, tokens[:, None]).any()


def test_all_problems_at_once():
    with pytest.raises(InputError) as caught:
        SamplingParams(max_new_tokens=0, temperature=-1, top_k=0, top_p=0.0, min_p=2, stop=("",))
    assert len(caught.value.problems) == 6


def test_one_stop_string_may_be_plain_text():
    assert SamplingParams(stop="\n\n").stop == ("\n\n",)
