"""Every family and head is the model that transformers has: the battery of tests/support, over all its cases."""

import battery
import pytest

EVERY = pytest.mark.parametrize("case", battery.all_cases(), ids=str)


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
