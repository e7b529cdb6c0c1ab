"""Generated families: seeded, with contacts that change together; mutual information sees some of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quatrain.core.errors import InputError
from quatrain.data.proteins import RESIDUES, SEPARATION, fold, generate, mutual_information, precision, properties

FAMILIES = generate(24, seed=0, length=40, depth=32)


def test_families_follow_the_seed_and_not_their_number():
    again = generate(24, seed=0, length=40, depth=32)
    for one, other in zip(FAMILIES, again, strict=True):
        assert np.array_equal(one.alignment, other.alignment) and np.array_equal(one.contacts, other.contacts)
    assert not np.array_equal(generate(1, seed=1)[0].contacts, FAMILIES[0].contacts)
    assert [len(each) for each in generate(5, seed=3, length=24, depth=2, batch=2)] == [24] * 5
    assert len(FAMILIES[0].sequences) == 32 and set("".join(FAMILIES[0].sequences)) <= set(RESIDUES)


@settings(max_examples=30, deadline=None)
@given(st.integers(24, 80), st.integers(0, 99))
def test_a_fold_is_symmetric_and_no_residue_touches_more_than_three(length, seed):
    contacts = fold(length, np.random.default_rng(seed))
    assert np.array_equal(contacts, contacts.T) and contacts.sum(0).max() <= 3
    rows, columns = np.nonzero(contacts)
    assert len(rows) and np.abs(rows - columns).min() >= SEPARATION


def test_residues_that_touch_prefer_opposite_charges():
    charge = properties()[:, 0]
    touching, apart = [], []
    for family in FAMILIES:
        values = charge[family.alignment]
        together = np.corrcoef(values.T + 1e-9 * np.random.default_rng(0).normal(size=values.T.shape))
        far = np.triu(np.ones_like(together, dtype=bool), SEPARATION)
        touching += together[far & family.contacts].tolist()
        apart += together[far & ~family.contacts].tolist()
    assert np.mean(touching) < np.mean(apart) - 0.1


def test_mutual_information_is_better_than_chance_and_worse_than_the_truth():
    found = np.mean([precision(mutual_information(each.alignment), each.contacts) for each in FAMILIES])
    chance = np.mean([precision(np.zeros((40, 40)), each.contacts, 40) for each in FAMILIES])
    assert 3 * chance < found < 0.6
    assert all(precision(each.contacts.astype(float), each.contacts, 0.5) == 1 for each in FAMILIES)


def test_mutual_information_is_the_textbook_s():
    alignment = np.array([[0, 0, 3], [1, 1, 3], [0, 0, 3], [1, 1, 3]])
    plain = mutual_information(alignment, pseudocount=1e-9)
    information = np.array([[0, np.log(2), 0], [np.log(2), 0, 0], [0, 0, 0]])
    mean = information.sum(0) / 2
    expected = information - np.outer(mean, mean) / mean.mean()
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(plain, expected, atol=1e-6)


def test_families_that_cannot_be_are_refused():
    for wrong in ({"length": 20}, {"depth": 1}):
        with pytest.raises(InputError, match="must be at least one"):
            generate(1, seed=0, **wrong)
