"""The processors keep what transformers' warpers keep, and a draw follows the distribution it inverts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.errors import InputError
from quatrain.generation.logits import SamplingParams, draw, processors


def reference(logits, params):
    from transformers.generation import logits_process as theirs

    chain = []
    if params.temperature != 1:
        chain.append(theirs.TemperatureLogitsWarper(params.temperature))
    if params.top_k is not None:
        chain.append(theirs.TopKLogitsWarper(params.top_k))
    if params.top_p is not None and params.top_p < 1:
        chain.append(theirs.TopPLogitsWarper(params.top_p))
    if params.min_p:
        chain.append(theirs.MinPLogitsWarper(params.min_p))
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
