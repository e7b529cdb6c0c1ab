"""Recurrent layers: the chunked scan is the step, packed and padded rows are their texts alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import mamba2, qwen3_5, random_model, xlstm

from quatrain.models.transformer import recurrence
from quatrain.models.transformer.delta_net import delta_scan, delta_step
from quatrain.models.transformer.kv_cache import KVCache
from quatrain.models.transformer.recurrence import (
    CausalConvolution,
    Recurrence,
    WithinChunks,
    make_recurrence,
    scan,
    step,
)

CLOSE = {"atol": 3e-5, "rtol": 3e-5}
CONFIGS = {"mamba2": mamba2(recurrent_bias=True), "xlstm": xlstm(), "qwen3_5": qwen3_5()}
EACH = pytest.mark.parametrize("name", CONFIGS)


def random_inputs(length, batch=2, groups=2, heads=4, width=3, size=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randn(batch, length, groups, size, generator=generator) for _ in range(2))
    values = torch.randn(batch, length, heads, width, generator=generator)
    decay = -torch.rand(batch, length, heads, generator=generator) * 3
    state = torch.randn(batch, heads, width, size, generator=generator)
    return queries, keys, values, decay, state


def step_by_step(queries, keys, values, decay, state):
    outputs = []
    for place in range(values.shape[1]):
        output, state = step(queries[:, place], keys[:, place], values[:, place], decay[:, place], state)
        outputs.append(output)
    return torch.stack(outputs, dim=1), state


@given(length=st.integers(1, 40), chunk=st.sampled_from([1, 2, 7, 16, 64]), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_scan_and_steps_are_equal(length, chunk, seed):
    inputs = random_inputs(length, seed=seed)
    expected, last = step_by_step(*inputs)
    output, state = scan(*inputs, Recurrence(), chunk)
    torch.testing.assert_close(output, expected, **CLOSE)
    torch.testing.assert_close(state, last, **CLOSE)


@given(data=st.data(), chunk=st.sampled_from([2, 5, 64]), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_scan_forgets_at_the_beginning_of_a_text_and_skips_padding(data, chunk, seed):
    """Each row: runs of texts, the first of which may continue the state, then padding."""
    rows = [data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)) for _ in range(2)]
    continues = [data.draw(st.booleans()) for _ in rows]
    length = max(map(sum, rows)) + data.draw(st.integers(0, 3))
    runs, counts = torch.zeros(2, length, dtype=torch.long), torch.tensor([sum(row) for row in rows])
    for row, parts in enumerate(rows):
        marks = [number + (not continues[row]) for number, part in enumerate(parts) for _ in range(part)]
        runs[row] = torch.tensor(marks + marks[-1:] * (length - len(marks)))
    inputs = random_inputs(length, seed=seed)
    output, state = scan(*inputs, Recurrence(counts=counts, runs=runs), chunk)
    *tensors, first = inputs
    for row, parts in enumerate(rows):
        start = 0
        for number, part in enumerate(parts):
            own = [tensor[row : row + 1, start : start + part] for tensor in tensors]
            before = first[row : row + 1] if number == 0 and continues[row] else torch.zeros_like(first[:1])
            expected, last = step_by_step(*own, before)
            torch.testing.assert_close(output[row, start : start + part], expected[0], **CLOSE)
            start += part
        torch.testing.assert_close(state[row], last[0], **CLOSE)


@given(
    length=st.integers(1, 40),
    chunk=st.sampled_from([1, 2, 7, 16, 64]),
    seed=st.integers(0, 99),
    parts=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_delta_scan_and_steps_are_equal(length, chunk, seed, parts):
    """Texts one after the other in a row, padding behind them."""
    queries, keys, values, decay, state = random_inputs(length, seed=seed)
    queries, keys = (torch.nn.functional.normalize(part, dim=-1) for part in (queries, keys))
    beta, state = torch.rand(decay.shape, generator=torch.Generator().manual_seed(seed)), state.mT
    runs = (torch.arange(length) * parts // length)[None].repeat(2, 1)
    counts = torch.tensor([length, max(1, length - 2)])
    rows = Recurrence(counts=counts, runs=runs)
    found, last = delta_scan(queries, keys, values, decay, beta, state, rows, chunk)
    before, expected, ends = state, [], []
    for place in range(length):
        if place and runs[0, place] != runs[0, place - 1]:
            before = torch.zeros_like(before)
        output, before = delta_step(*(part[:, place] for part in (queries, keys, values, decay, beta)), before)
        expected.append(output)
        ends.append(before)
    outputs = torch.stack(expected, dim=1)
    for row, count in enumerate(counts.tolist()):
        torch.testing.assert_close(found[row, :count], outputs[row, :count], **CLOSE)
        if runs[row, count - 1] == runs[row, -1]:
            torch.testing.assert_close(last[row], ends[count - 1][row], **CLOSE)


def test_a_strong_decay_gives_no_nan():
    queries, keys, values, decay, state = random_inputs(200)
    tensors = [tensor.requires_grad_() for tensor in (queries, keys, values, decay * 200, state)]
    output, last = scan(*tensors, Recurrence())
    (output.sum() + last.sum()).backward()
    assert output.isfinite().all() and all(tensor.grad is None or tensor.grad.isfinite().all() for tensor in tensors)


@st.composite
def packed_rows(draw):
    """Segments (B, T): texts one after the other, with padding anywhere around them."""
    length, rows = draw(st.integers(4, 30)), []
    for _ in range(2):
        row: list[int] = []
        segment = 0
        while len(row) < length:
            text = draw(st.booleans()) or len(row) > length // 2
            segment += text
            row += [segment if text else 0] * draw(st.integers(1, 9))
        rows.append(row[:length])
    return torch.tensor(rows)


@EACH
@given(segments=packed_rows(), portions=st.lists(st.integers(1, 12), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_packed_and_padded_rows_are_their_texts(name, segments, portions):
    """At once, and in portions with a cache."""
    model = random_model(CONFIGS[name], scale=0.1)
    ids = torch.randint(3, 60, segments.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = model(ids, segments=segments)[0]
        cache, start, parts = KVCache(model.config, 2, 4), 0, []
        while start < ids.shape[1]:
            end = start + portions[len(parts) % len(portions)]
            parts.append(model(ids[:, start:end], segments=segments[:, start:end], cache=cache)[0])
            start = end
        cached = torch.cat(parts, dim=1)
        for row in range(2):
            for segment in segments[row].unique().tolist():
                if segment:
                    own = segments[row] == segment
                    expected = model(ids[row, own][None])[0][0]
                    torch.testing.assert_close(whole[row, own], expected, **CLOSE)
                    torch.testing.assert_close(cached[row, own], expected, **CLOSE)


@EACH
def test_packing_changes_no_gradient(name):
    ids = torch.randint(3, 60, (2, 70), generator=torch.Generator().manual_seed(1))
    gradients = []
    for packed in (True, False):
        model = random_model(CONFIGS[name], scale=0.1).train()
        if packed:
            segments = torch.tensor([[1] * 70 + [2] * 70 + [0] * 3])
            row = torch.cat((ids[0], ids[1], torch.zeros(3, dtype=torch.long)))[None]
            labels = torch.where(segments == 0, -100, row)
            loss = model(row, labels, segments=segments)[1].sum()
        else:
            loss = model(ids, ids)[1].sum()
        loss.backward()
        gradients.append({key: parameter.grad / 140 for key, parameter in model.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key], atol=1e-6, rtol=1e-4)


@EACH
def test_a_state_has_one_size(name):
    config = CONFIGS[name]
    sizes = {KVCache(config, 3, length).nbytes for length in (1, 10, 1000)}
    assert config.attends or sizes == {3 * recurrence.state_bytes(config)}
    assert recurrence.state_bytes(config) > 0


def test_only_what_is_needed_is_kept_of_the_segments():
    one = torch.ones(2, 5, dtype=torch.long)
    assert make_recurrence(one, 0, 5, None, one.device) == Recurrence()
    right = one.clone()
    right[1, 3:] = 0
    found = make_recurrence(right, 0, 5, None, one.device)
    assert found.order is None and found.runs is None and found.counts.tolist() == [5, 3]


def test_written_out_gradients() -> None:
    """Those of the convolution and of the products within a chunk, beside differences of the function."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    torch.autograd.gradcheck(CausalConvolution.apply, (drawn(2, 6, 3), drawn(3, 3), drawn(3)))
    visible = torch.ones(3, 3, dtype=torch.bool).tril()
    for heads in (1, 2):
        inputs = drawn(2, 1, 2, 3, 3), drawn(2, 1, heads, 2, 3), drawn(2, 1, heads, 2, 3, 4)
        torch.autograd.gradcheck(WithinChunks.apply, (*inputs, visible))
