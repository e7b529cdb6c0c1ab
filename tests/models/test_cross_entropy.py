"""The loss that keeps no log-probabilities: PyTorch's values and gradients, and far less memory for them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from quatrain.models.transformer import cross_entropy, heads
from quatrain.models.transformer.cross_entropy import CrossEntropyFunction


@given(st.integers(1, 40), st.integers(2, 300), st.integers(0, 2**31), st.sampled_from([1, 7, 64, 1 << 18]))
@settings(max_examples=40, deadline=None)
def test_values_and_gradients(rows, vocabulary, seed, portion):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, vocabulary, generator=generator) * 5).requires_grad_()
    labels = torch.randint(0, vocabulary, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < 0.3] = -100
    weights = torch.randn(rows, generator=generator)
    expected = F.cross_entropy(logits, labels, ignore_index=-100, reduction="none")
    before = cross_entropy.CHUNK_ELEMENTS["cpu"]
    cross_entropy.CHUNK_ELEMENTS["cpu"] = portion
    try:
        loss = CrossEntropyFunction.apply(logits, labels, -100)
        (gradient,) = torch.autograd.grad((loss * weights).sum(), logits)
    finally:
        cross_entropy.CHUNK_ELEMENTS["cpu"] = before
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), logits)
    torch.testing.assert_close(gradient, theirs, atol=1e-6, rtol=1e-5)
    assert (gradient[labels == -100] == 0).all() and (loss[labels == -100] == 0).all()


def test_bfloat16_is_as_exact_as_its_logits():
    logits = torch.randn(50, 5000, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    labels = torch.arange(50) * 99
    loss = CrossEntropyFunction.apply(logits, labels, -100)
    assert loss.dtype == torch.float32
    exact = F.cross_entropy(logits.double(), labels, reduction="none")
    torch.testing.assert_close(loss.double(), exact, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad(loss.mean(), logits)
    (wanted,) = torch.autograd.grad(exact.mean(), logits)
    torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-2)


def test_logits_so_large_that_their_exponential_is_infinite():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], requires_grad=True)
    loss = CrossEntropyFunction.apply(logits, torch.tensor([1, 0]), -100)
    torch.testing.assert_close(loss, torch.tensor([2e4, 1.0986123]))
    loss.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("vocabulary", [heads.LARGE_VOCABULARY - 1, heads.LARGE_VOCABULARY])
def test_a_language_head_takes_it_for_a_large_vocabulary(vocabulary, monkeypatch):
    kept = []

    def note(tensor):
        kept.append(tensor.nbytes)
        return tensor

    logits = torch.randn(2, 8, vocabulary).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = heads.token_loss(logits, torch.zeros(2, 8, dtype=torch.long))
    assert loss.shape == (2, 8)
    # the small one keeps float32 log-probabilities, the large one the logits themselves and a number for each token
    assert (sum(kept) > 1.5 * logits.nbytes) == (vocabulary < heads.LARGE_VOCABULARY)
