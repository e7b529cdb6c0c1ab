"""Sampled softmax: nearly the whole softmax, for a part of the words."""

import numpy as np
import pytest
import torch

from quatrain.core.errors import InputError
from quatrain.models.classic.recurrent import RecurrentLM, RecurrentLMConfig
from quatrain.training.objectives import Causal
from quatrain.training.sampled_loss import SampledSoftmax

SIZE = 60


def setup():
    model = RecurrentLM(RecurrentLMConfig(vocab_size=SIZE, hidden_size=12)).initialize(0)
    generator = torch.Generator().manual_seed(0)
    ids, labels = (torch.randint(0, SIZE, (4, 20), generator=generator) for _ in range(2))
    labels[0, :5] = -100
    return model, ids, labels


def test_its_mean_is_near_the_whole_softmax_and_its_gradient_too():
    model, ids, labels = setup()
    hidden = model.hidden_states(ids).detach().requires_grad_(True)
    whole = Causal().summed(model.eval(), hidden, labels)
    (expected,) = torch.autograd.grad(whole, hidden)
    sampler = SampledSoftmax(np.arange(1, SIZE + 1), 40)
    torch.manual_seed(0)
    losses, gradients = [], []
    for _ in range(60):
        loss = sampler.loss(model, hidden, labels)
        losses.append(float(loss.detach()))
        gradients.append(torch.autograd.grad(loss, hidden)[0])
    assert np.mean(losses) == pytest.approx(float(whole.detach()), rel=0.02)
    found = torch.stack(gradients).mean(0)
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.98


def test_only_training_samples():
    model, ids, labels = setup()
    objective = Causal()
    objective.sampler = SampledSoftmax(np.ones(SIZE), 5)
    hidden = model.hidden_states(ids)
    assert torch.equal(objective.summed(model.eval(), hidden, labels), Causal().summed(model, hidden, labels))
    assert not torch.equal(objective.summed(model.train(), hidden, labels), Causal().summed(model, hidden, labels))


def test_more_samples_than_words_are_refused():
    with pytest.raises(InputError, match="below the vocabulary of 60"):
        SampledSoftmax(np.ones(SIZE), 60)
