"""Every equivalent way to compute a step gives the step: accumulation, packing, padding, chunks, checkpointing, scales
of float16, processes that share the micro-batches; loss and gradients to 1e-6."""

import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tiny_training import CONFIG, FixedStream, ragged, settings, weights, windows

from quatrain.data.batches import IGNORE_INDEX, TokenBatch, TokenExample, pack, pad
from quatrain.models.families.fresh import fresh_config
from quatrain.models.transformer.stack import Model
from quatrain.training import chunked_loss
from quatrain.training.acceleration import activation_checkpointing, blocks
from quatrain.training.chunked_loss import chunking, summed_language_loss
from quatrain.training.distributed import ParallelStrategy
from quatrain.training.objectives import Causal
from quatrain.training.precision import LossScaler
from quatrain.training.streams import PackedStream, of_process
from quatrain.training.trainer import Hooks, Trainer


class ByHead(Causal):
    """Next-token prediction through `summed_language_loss`, which decides about chunks by itself."""

    def loss(self, model, batch):
        hidden = model.hidden_states(batch.input_ids, positions=batch.positions, segments=batch.segments)
        return summed_language_loss(model, hidden, batch.labels), batch.num_labels, {}


def one_step(parts, objective=None, *, model=None, **changes):
    """Mean loss, and the gradient of it by name, of micro-batches that together are one step."""
    model = model or Model(CONFIG).initialize(0)
    logged = []
    usual = {"steps": 1, "warmup_steps": 0, "schedule": "constant", "accumulation": len(parts), "max_grad_norm": 0.0}
    trainer = Trainer(
        model,
        objective or Causal(),
        FixedStream(parts),
        settings(**(usual | changes)),
        steps=1,
        hooks=Hooks(log=logged.append),
    )
    trainer.train()
    return logged[0]["loss"], {name: master.grad.clone() for name, master in trainer.weights.masters.items()}


def assert_same(found, expected, *, bits=False):
    assert found[0] == pytest.approx(expected[0], abs=0 if bits else 1e-6, rel=0 if bits else 1e-6)
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max() <= (0 if bits else 1e-6), name


def shares(items, parts):
    size = len(items) // parts
    return [items[number * size : (number + 1) * size] for number in range(parts)]


@functools.cache
def whole():
    return one_step([ragged()])


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation(parts):
    assert_same(one_step(shares(ragged(), parts)), whole())


@examples(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), cuts=st.sets(st.integers(1, 7), max_size=7))
def test_any_cut_of_any_ragged_batch(seed, cuts):
    texts = ragged(seed=seed)
    places = [0, *sorted(cuts), 8]
    parts = [texts[start:end] for start, end in itertools.pairwise(places)]
    assert_same(one_step(parts), one_step([texts]))


def test_packing_is_single():
    singles = [pad([text], 0, multiple=1) for text in ragged()]
    expected = one_step(singles)
    assert_same(expected, whole())
    assert_same(one_step([pack(ragged(), 48, 0)]), expected)


@pytest.mark.parametrize("multiple", [1, 16, 64])
def test_padding_changes_nothing(multiple):
    assert_same(one_step([pad(ragged(), 7, multiple=multiple)]), whole())


@pytest.mark.parametrize("chunk", [50, 1000, 1 << 20])
def test_chunks_of_the_loss(chunk, monkeypatch):
    monkeypatch.setattr(chunked_loss, "CHUNK", {"cpu": chunk, "else": chunk})
    for parts in (1, 4):
        assert_same(one_step(shares(ragged(), parts), ByHead(), chunked_loss=True), whole())
    assert_same(one_step([ragged()], ByHead(), chunked_loss=False), whole(), bits=True)


FAMILIES = ("llama", "gpt2", "gemma2", "gpt_neox")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_bit_for_bit(family, dropout):
    sizes = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4
    }  # fmt: skip
    found = []
    for wanted in (False, True):
        model = Model(fresh_config(family, sizes).replace(dropout=dropout)).initialize(0)
        names = list(model.state_dict())
        found.append(one_step(shares(ragged(), 2), model=model, activation_checkpointing=wanted, dropout=dropout))
        assert list(model.state_dict()) == names and "forward" not in vars(model.layers[0])
    assert_same(found[1], found[0], bits=True)


def test_checkpointing_of_an_encoder_and_a_decoder():
    sizes = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4
    }  # fmt: skip
    model = Model(fresh_config("t5", sizes, head="seq2seq")).initialize(0)
    assert len(blocks(model)) == 4
    generator = torch.Generator().manual_seed(0)
    ids, labels = (torch.randint(1, 50, (3, 9), generator=generator) for _ in range(2))
    found = []
    for wanted in (False, True):
        model.zero_grad()
        with activation_checkpointing(model, wanted):
            model(ids, labels)[1].sum().backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_float16_and_its_scale():
    exact = whole()
    narrow = one_step([ragged()], precision="float16")
    assert narrow[0] == pytest.approx(exact[0], rel=2e-3)
    for name, gradient in exact[1].items():
        assert (narrow[1][name] - gradient).norm() <= 0.02 * gradient.norm() + 1e-6, name


def test_float16_learns_as_float32_does():
    ends = []
    for precision in ("float32", "float16"):
        model = Model(CONFIG).initialize(0)
        wanted = settings(steps=30, precision=precision, learning_rate=1e-2)
        ends.append(Trainer(model, Causal(), windows(), wanted, steps=30).train().loss)
        assert {tensor.dtype for tensor in weights(model).values()} == {torch.float32}
    assert ends[1] == pytest.approx(ends[0], abs=0.02)


def test_a_scale_too_large_is_halved_until_it_fits():
    model = Model(CONFIG).initialize(0)
    warned, logged = [], []
    trainer = Trainer(
        model,
        Causal(),
        windows(),
        settings(steps=20, precision="float16"),
        steps=20,
        hooks=Hooks(warn=warned.append, log=logged.append),
    )
    make = trainer._make_scaler

    def huge(state):
        scaler = make(state)
        scaler.factor = 2.0**22
        return scaler

    trainer._make_scaler = huge
    result = trainer.train()
    overflows = [text for text in warned if "float16 overflow" in text]
    assert 1 <= len(overflows) < 15 and result.skipped == 0
    assert logged[-1]["loss_scale"] == 2.0 ** (22 - len(overflows)) and logged[-1]["loss"] < 3.9


def test_the_scale_grows_after_good_steps_and_comes_back():
    scaler = LossScaler(1024, patience=3)
    begin = scaler.factor
    for _ in range(3):
        scaler.advance(True)
    assert scaler.factor == 2 * begin
    scaler.advance(True)
    other = LossScaler(1024, patience=3)
    other.load_state(scaler.state())
    for each in (scaler, other):
        each.advance(True)
        each.advance(True)
    assert scaler.state() == other.state() == {"factor": 4 * begin, "good": 0}


def test_a_compiler_that_fails_costs_a_warning_only(monkeypatch):
    expected = one_step([ragged()])
    from quatrain.models.transformer.stack import Block

    def broken(*given, **named):
        raise RuntimeError("no C++ compiler was found")

    monkeypatch.setattr(Block, "compile", lambda self, **named: setattr(self, "_compiled_call_impl", broken))
    model, warned = Model(CONFIG).initialize(0), []
    trainer = Trainer(
        model,
        Causal(),
        FixedStream(shares(ragged(), 2)),
        settings(steps=1, warmup_steps=0, schedule="constant", accumulation=2, max_grad_norm=0.0, compile=True),
        steps=1,
        hooks=Hooks(warn=warned.append),
    )
    trainer.train()
    assert len(warned) == 1 and "no C++ compiler was found" in warned[0] and "train.compile = false" in warned[0]
    gradients = {name: master.grad for name, master in trainer.weights.masters.items()}
    assert all((gradients[name] - gradient).abs().max() <= 1e-6 for name, gradient in expected[1].items())
    assert all(block._compiled_call_impl is None for block in blocks(model))


class Shared(ParallelStrategy):
    """One of two processes that add up by hand: what each would have sent is kept, the other's sums are added."""

    size = 2

    def __init__(self, rank, others):
        self.rank, self.is_main, self.others, self.sent = rank, rank == 0, others, []

    def sum(self, values):
        mine = super().sum(values)
        self.sent.append(mine)
        return [a + b for a, b in zip(mine, self.others[len(self.sent) - 1], strict=True)] if self.others else mine


def test_two_processes_divide_once_and_share_the_micro_batches():
    """Each process's gradient, divided by the weight of both, adds up to that of one process."""
    parts = shares(ragged(), 4)
    expected = one_step(parts)
    sent = []
    for rank in (0, 1):
        alone = Shared(rank, None)
        run_process(parts, alone)
        sent.append(alone.sent)
    gradients, losses = [], []
    for rank in (0, 1):
        loss, gradient = run_process(parts, Shared(rank, sent[1 - rank]))
        gradients.append(gradient)
        losses.append(loss)
    assert losses[0] == pytest.approx(expected[0], rel=1e-6)
    for name, gradient in expected[1].items():
        assert (gradients[0][name] + gradients[1][name] - gradient).abs().max() <= 1e-6, name


def run_process(parts, parallel):
    found = []
    trainer = Trainer(
        Model(CONFIG).initialize(0),
        Causal(),
        FixedStream(parts),
        settings(steps=1, warmup_steps=0, schedule="constant", accumulation=4, max_grad_norm=0.0),
        steps=1,
        hooks=Hooks(log=found.append),
        parallel=parallel,
    )
    trainer.train()
    gradients = {name: master.grad.clone() for name, master in trainer.weights.masters.items()}
    return found[0]["loss"] if found else None, gradients


def test_processes_read_the_stream_between_them():
    alone, two = windows(), [of_process(windows(), rank, 2) for rank in (0, 1)]
    for _ in range(60):
        for each in two:
            assert torch.equal(each.next().input_ids, alone.next().input_ids)
        assert two[0].state() == two[1].state() == alone.state()


def test_segments_that_are_packed_do_not_see_each_other():
    """Were they seen, the loss of the second text would follow from the first."""
    first, second = ragged(2)
    other = TokenExample([(token + 1) % 50 for token in first.ids], first.mask)
    model = Model(CONFIG).initialize(0).eval()
    rows = [pack([text, second], 64, 0) for text in (first, other)]
    losses = [model(row.input_ids, row.labels, positions=row.positions, segments=row.segments)[1] for row in rows]
    assert torch.equal(losses[0][rows[0].segments == 2], losses[1][rows[0].segments == 2])


def test_a_micro_batch_without_any_label_counts_nothing():
    empty = TokenBatch.of(torch.zeros(2, 8, dtype=torch.long), torch.full((2, 8), IGNORE_INDEX))
    texts = pad(ragged(), 0)
    assert_same(one_step([texts, empty]), whole())
    found = one_step([empty])
    assert found[0] == 0 and all(np.all(gradient.numpy() == 0) for gradient in found[1].values())
    with chunking(True):
        assert_same(one_step([texts, empty], ByHead(), chunked_loss=True), whole())


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_examples_packed_into_rows_are_the_same_step(family):
    """Ragged masks, one example a row or several: the stream's own batches, loss and gradient."""
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "max_position_embeddings": 64}  # fmt: skip
    found = []
    for packed in (False, True):
        model = Model(fresh_config(family, sizes)).initialize(0)
        examples = ragged(count=12, seed=9)
        stream = PackedStream(examples, length=40, rows=100, pad_id=0, seed=0) if packed else FixedStream([examples])
        batch = stream.next()
        if packed:
            assert batch.input_ids.shape[0] < 12 and int((batch.segments > 1).sum()) > 0
        else:
            batch = pad(batch, 0)
            lengths = torch.tensor([len(example) - 1 for example in examples])
            own = torch.arange(batch.input_ids.shape[1]) < lengths[:, None]
            batch = batch.replace(segments=own.long())
        found.append(one_step([batch], ByHead(), model=model))
    assert_same(*found)


@pytest.mark.parametrize("multiple", [1, 16, 64])
def test_padding_to_buckets(multiple):
    found = one_step([ragged()], Causal(multiple=multiple))
    assert_same(found, whole())
