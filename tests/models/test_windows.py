"""Sliding windows: what is kept of a text is what its windows still see, however it is read."""

import functools
from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import llama, random_model

from quatrain.models.transformer.kv_cache import KVCache

LENGTH = 23


@functools.cache
def model_of(window, layers):
    return random_model(
        llama(family="mistral", num_hidden_layers=len(layers), sliding_window=window, layer_types=layers)
    )


@given(
    window=st.integers(1, 26),
    layers=st.sampled_from([("sliding",), ("sliding", "full"), ("full", "sliding", "sliding")]),
    cuts=st.lists(st.integers(1, LENGTH - 1), max_size=6, unique=True),
    pads=st.lists(st.integers(0, 9), min_size=2, max_size=2),
)
@settings(max_examples=60, deadline=None)
def test_cached_parts_equal_the_whole(window, layers, cuts, pads):
    model = model_of(window, layers)
    text = torch.randint(0, 60, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    segments = (torch.arange(LENGTH)[None] >= torch.tensor(pads)[:, None]).long()
    given_segments = segments if any(pads) else None
    cache = KVCache(model.config, 2, LENGTH)
    with torch.no_grad():
        whole = model(text, segments=given_segments)[0]
        parts = [
            model(text[:, a:b], segments=None if given_segments is None else segments[:, a:b], cache=cache)[0]
            for a, b in pairwise([0, *sorted(cuts), LENGTH])
        ]
        alone = model(text[:1, pads[0] :])[0][0]
    where = segments == 1
    torch.testing.assert_close(torch.cat(parts, 1)[where], whole[where], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole[0, pads[0] :], alone, atol=1e-5, rtol=1e-5)
    for kept, kind in zip(cache.keys, layers, strict=True):
        assert kept.shape[2] == (LENGTH if kind == "full" else min(LENGTH, 2 * window))


def test_a_token_changes_what_follows_within_the_windows_and_nothing_else():
    model = model_of(4, ("sliding", "sliding", "sliding"))
    text = torch.randint(0, 59, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    other = text.clone()
    other[0, 5] = 59
    with torch.no_grad():
        changed = (model(text)[0] - model(other)[0]).abs().amax(-1)[0]
    reach = 5 + 3 * (4 - 1)  # each layer carries it window - 1 tokens further
    assert (changed[5 : reach + 1] > 1e-6).all()
    assert (changed[:5] == 0).all() and (changed[reach + 1 :] == 0).all()
