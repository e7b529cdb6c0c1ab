"""Every family and head is the model that transformers has: the battery of tests/support, over all its cases."""

import battery
import pytest
from quick_set import first_of_each, some

CASES = battery.all_cases()
EVERY = pytest.mark.parametrize("case", some(CASES, first_of_each(CASES, lambda case: case.config)), ids=str)
"""Every case; the quick set has the first of each family."""


@EVERY
def test_logits(case, tmp_path):
    battery.check_logits(case, tmp_path)


@EVERY
def test_loss_and_gradients(case, tmp_path):
    battery.check_loss_and_gradients(case, tmp_path)


@EVERY
def test_hidden_states_and_attention_weights(case, tmp_path):
    battery.check_trace(case, tmp_path)


@EVERY
def test_written_by_us_read_by_them(case, tmp_path):
    battery.check_round_trip(case, tmp_path)


@EVERY
def test_cached_decoding(case, tmp_path):
    battery.check_cache(case, tmp_path)
