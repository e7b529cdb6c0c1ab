"""Batches: shifted labels, padding that is never learned, packing that loses nothing."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import llama

from quatrain.data.batches import IGNORE_INDEX, TokenExample, fill_rows, pack, pad, shift, windows
from quatrain.models.transformer.stack import Model

example = st.lists(st.tuples(st.integers(0, 49), st.booleans()), min_size=2, max_size=20).map(
    lambda pairs: TokenExample([token for token, _ in pairs], [learn for _, learn in pairs])
)


def test_shift_by_hand():
    assert shift(TokenExample([5, 6, 7], [True, False, True])) == ([5, 6], [IGNORE_INDEX, 7])


@given(st.lists(example, min_size=1, max_size=8))
def test_padding_and_packing_learn_exactly_what_is_to_be_learned(examples):
    wanted = sum(each.num_labels for each in examples)
    padded, packed = pad(examples, 0), pack(examples, 24, 0)
    assert padded.num_labels == packed.num_labels == wanted
    assert padded.input_ids.shape[1] % 8 == 0
    assert packed.input_ids[packed.segments > 0].numel() == sum(len(each) - 1 for each in examples)
    assert (packed.labels[packed.segments == 0] == IGNORE_INDEX).all()


def test_packed_and_padded_give_the_same_loss_and_gradients():
    torch.manual_seed(0)
    config = llama(vocab_size=50)
    generator = np.random.default_rng(0)
    examples = [
        TokenExample([int(t) for t in generator.integers(0, 50, n)], [bool(b) for b in generator.integers(0, 2, n)])
        for n in (5, 17, 9, 23, 3, 12)
    ]
    found = []
    for batch in (pad(examples, 0), pack(examples, 32, 0)):
        model = Model(config).initialize(0)
        _, loss = model(batch.input_ids, batch.labels, positions=batch.positions, segments=batch.segments)
        (loss.sum() / batch.num_labels).backward()
        found.append([loss.sum().detach() / batch.num_labels, *(parameter.grad for parameter in model.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_windows_read_and_predict_the_text():
    batch = windows(np.arange(100, dtype=np.uint16), [0, 10], 5)
    assert batch.input_ids.tolist() == [[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]
    assert batch.labels.tolist() == [[1, 2, 3, 4, 5], [11, 12, 13, 14, 15]]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=120), st.integers(40, 90))
def test_rows_hold_every_item_once_and_are_never_too_full(lengths, room):
    rows = fill_rows(lengths, room)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in row) <= room for row in rows)
    # Of any two rows one is more than half full, or they would be one.
    assert sum(sum(lengths[number] for number in row) * 2 <= room for row in rows) <= 1


def test_best_fit_fills_what_first_fit_leaves():
    assert [sorted(row) for row in fill_rows([6, 5, 4, 3, 2], 10)] == [[0, 2], [1, 3, 4]]
