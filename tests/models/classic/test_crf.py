"""The conditional random field: every sum over sequences equals the one over all of them, written out."""

from __future__ import annotations

import math
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.models.classic._crf import CRF, gathered
from quatrain.models.classic.recurrent_encoder import RecurrentEncoder, RecurrentEncoderConfig

LABELS = 3


def field(seed: int) -> CRF:
    crf = CRF(LABELS)
    generator = torch.Generator().manual_seed(seed)
    for parameter in crf.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return crf


def all_scores(crf: CRF, emissions: torch.Tensor) -> dict[tuple[int, ...], float]:
    """The score of every sequence of tags for the emissions (T, L) of one row."""
    found = {}
    for tags in product(range(LABELS), repeat=len(emissions)):
        total = crf.start[tags[0]] + crf.end[tags[-1]]
        total = total + sum(emissions[step, tag] for step, tag in enumerate(tags))
        total = total + sum(crf.transitions[one, two] for one, two in pairwise(tags))
        found[tags] = float(total.detach())
    return found


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_forward_viterbi_and_marginals_equal_brute_force(seed, lengths):
    crf = field(seed)
    width = max(lengths)
    emissions = torch.randn(len(lengths), width, LABELS, generator=torch.Generator().manual_seed(seed + 1))
    tags = torch.randint(0, LABELS, (len(lengths), width), generator=torch.Generator().manual_seed(seed + 2))
    counts = torch.tensor(lengths)
    partition, loss = crf.log_partition(emissions, counts).detach(), crf.loss(emissions, tags, counts).detach()
    paths, marginals = crf.viterbi(emissions, counts), crf.marginals(emissions, counts)
    for row, length in enumerate(lengths):
        scores = all_scores(crf, emissions[row, :length])
        total = float(torch.logsumexp(torch.tensor(list(scores.values())), 0))
        assert float(partition[row]) == pytest.approx(float(total), abs=1e-4)
        own = tuple(tags[row, :length].tolist())
        assert float(loss[row]) == pytest.approx(float(total) - scores[own], abs=1e-4)
        assert scores[tuple(paths[row])] == pytest.approx(max(scores.values()), abs=1e-5)
        for step in range(length):
            for label in range(LABELS):
                share = sum(math.exp(score - total) for path, score in scores.items() if path[step] == label)
                assert float(marginals[row, step, label].detach()) == pytest.approx(float(share), abs=1e-4)


def test_only_labelled_places_are_tagged():
    emissions = torch.arange(2 * 5 * 3, dtype=torch.float32).view(2, 5, 3)
    places = torch.tensor([[True, False, True, False, True], [False, True, False, False, False]])
    labels = torch.tensor([[1, -100, 2, -100, 0], [-100, 2, -100, -100, -100]])
    packed, tags, lengths = gathered(emissions, places, labels)
    assert lengths.tolist() == [3, 1]
    assert torch.equal(packed[0], emissions[0, [0, 2, 4]]) and torch.equal(packed[1, 0], emissions[1, 1])
    assert tags[0].tolist() == [1, 2, 0]


def test_the_loss_of_a_tagger_is_that_of_its_sequences():
    config = RecurrentEncoderConfig(vocab_size=20, hidden_size=8, labels=["a", "b", "c"], crf=True)
    model = RecurrentEncoder(config).initialize(0).eval()
    model.crf.transitions.data.normal_(generator=torch.Generator().manual_seed(0))
    ids = torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([[0, -100, 2, 1, -100, -100], [-100] * 6])
    emissions, loss = model(ids, labels)
    scores = all_scores(model.crf, emissions[0, [0, 2, 3]])
    total = torch.logsumexp(torch.tensor(list(scores.values())), 0)
    assert float(loss[0].sum()) == pytest.approx(float(total) - scores[0, 2, 1], abs=1e-4)
    assert loss[0].nonzero().tolist() == [[0]] and not loss[1].any()
    found, shares = model.tag(emissions, labels >= 0)
    assert scores[tuple(found[0])] == pytest.approx(max(scores.values()), abs=1e-5)
    assert found[1] == [] and all(0 < share <= 1 for share in shares[0])
