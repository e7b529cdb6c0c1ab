"""Every family and head is the model that transformers has: the battery of tests/support, over all its cases."""

import battery
import pytest

EVERY = pytest.mark.parametrize("case", battery.all_cases(), ids=str)


@EVERY
def test_logits(case):
    battery.check_logits(case)


@EVERY
def test_loss_and_gradients(case):
    battery.check_loss_and_gradients(case)


@EVERY
def test_hidden_states_and_attention_weights(case):
    battery.check_trace(case)


@EVERY
def test_written_by_us_read_by_them(case, tmp_path):
    battery.check_round_trip(case, tmp_path)


@EVERY
def test_cached_decoding(case):
    battery.check_cache(case)
