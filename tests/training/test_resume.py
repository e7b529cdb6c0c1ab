"""A run that is stopped and resumed is the run that was left alone, bit for bit, whatever its state is made of; it
stops early and keeps the best where asked."""

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from quick_set import some
from tiny_training import CONFIG, hooks_of, ragged, settings, weights, windows

from quatrain.core.errors import InputError, QuatrainError
from quatrain.data.batches import TokenExample
from quatrain.models.transformer.stack import Model
from quatrain.training import checkpoints
from quatrain.training.objectives import Causal
from quatrain.training.stopping import Best
from quatrain.training.streams import ExampleStream, PackedStream, StreamedExamples, micro_seeds
from quatrain.training.trainer import Hooks, Trainer

ROOT = Path(__file__).parents[2]


def texts(count=200, seed=4):
    generator = np.random.default_rng(seed)
    return [
        TokenExample([int(t) for t in generator.integers(0, 50, n)], [True] * n)
        for n in generator.integers(3, 30, count).tolist()
    ]


TEXTS = texts()


def streamed(seed=0, buffer=32):
    return StreamedExamples(lambda start: iter(TEXTS[start:]), batch_tokens=128, seed=seed, buffer=buffer)


class Drawing(Causal):
    """Draws in every way that an objective may: from its seed, and from torch's generator in its loss."""

    draws = True

    def collate(self, examples, seed=0):
        batch = super().collate(examples)
        seeds = [seed] * len(batch.input_ids) if isinstance(seed, int) else seed
        for row, own in enumerate(seeds):
            hidden = np.random.default_rng(own).random(batch.labels.shape[1]) < 0.2
            batch.labels[row, torch.from_numpy(hidden)] = -100
        return batch

    def loss(self, model, batch):
        loss, weight, metrics = super().loss(model, batch)
        return loss * (1 + 0.1 * torch.rand(())), weight, metrics | {"drawn": torch.rand(())}


class Jumping(Drawing):
    """Its loss jumps on some micro-batches, counted by what they hold, so that a resumed run jumps alike."""

    def loss(self, model, batch):
        loss, weight, metrics = super().loss(model, batch)
        return loss * (math.nan if int(batch.input_ids.sum()) % 11 == 0 else 1.0), weight, metrics


CASES = {
    "streaming shuffle and what is drawn": (Drawing, {}),
    "dropout and accumulation": (Drawing, {"dropout": 0.2, "accumulation": 3}),
    "bad steps skipped": (Jumping, {"on_bad_step": "skip"}),
    "float16 with its scale": (Drawing, {"precision": "float16"}),
    "muon in bfloat16": (Drawing, {"precision": "bfloat16", "optimizer": "muon"}),
    "states of eight bits": (Drawing, {"optimizer": "adamw8bit"}),
    "activation checkpointing": (Drawing, {"activation_checkpointing": True, "dropout": 0.2}),
    "best kept": (Drawing, {"keep": "best", "evaluate_every": 2}),
    "stopping early": (Drawing, {"patience": 3, "evaluate_every": 1, "metric": "strange_loss"}),
}


@pytest.mark.parametrize("case", some(CASES, list(CASES)[:4]))
def test_stopped_anywhere_and_resumed_twice(tmp_path, case):
    kind, changes = CASES[case]
    wanted = settings(**({"steps": 14, "checkpoint_every": 1} | changes))

    def run(folder, stop=None):
        model = Model(CONFIG.replace(dropout=wanted.dropout)).initialize(0)
        calls = []

        def validate(current):
            # Draws, to show that what a validation draws does no harm; and a metric with a best in the middle.
            torch.rand(3)
            calls.append(1)
            with torch.no_grad():
                _, loss = current(torch.arange(24)[None], torch.arange(1, 25)[None])
            strange = abs(float(loss.mean()) - 3.85)
            return {"validation_loss": float(loss.mean()), "strange_loss": strange}

        def progress(step, **metrics):
            if step == stop:
                raise KeyboardInterrupt

        hooks = hooks_of(model, validate=validate, progress=progress)
        trainer = Trainer(model, kind(), streamed(), wanted, steps=14, seed=3, folder=folder, hooks=hooks)
        return trainer.train(), weights(model)

    expected, whole = run(tmp_path / "whole")
    if case == "bad steps skipped":
        assert 0 < expected.skipped < 10
    if case == "stopping early":
        assert expected.steps < 14
    for stop in (3, min(9, expected.steps - 1)):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", stop)
    again = tmp_path / "again"
    subprocess.run(["cp", "-r", str(tmp_path / "cut"), str(again)], check=True)
    for folder in (tmp_path / "cut", again):
        found, resumed = run(folder)
        assert all(torch.equal(resumed[name], whole[name]) for name in whole)
        for name in ("steps", "size", "loss", "metrics", "best_step", "skipped"):
            assert getattr(found, name) == getattr(expected, name), name


def best_run(tmp_path, values, *, folder=True, steps=12, **changes):
    """A run whose validations measure `values` in turn; returns result, weights, and those at each validation."""
    model = Model(CONFIG).initialize(0)
    seen = []

    def validate(current):
        seen.append(weights(current))
        return {"validation_loss": values[len(seen) - 1], "accuracy": -values[len(seen) - 1]}

    wanted = settings(**({"steps": steps, "evaluate_every": 2, "checkpoint_every": 2} | changes))
    warned = []
    hooks = hooks_of(model, validate=validate, warn=warned.append) if folder else Hooks(validate=validate)
    trainer = Trainer(model, Causal(), windows(), wanted, steps=steps, folder=tmp_path if folder else None, hooks=hooks)
    return trainer.train(), weights(model), seen, warned


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("metric", ["validation_loss", "accuracy"])
def test_the_best_weights_are_kept(tmp_path, folder, precision, metric):
    values = [3.0, 2.0, 1.0, 5.0, 4.0, 6.0]
    result, after, seen, _ = best_run(tmp_path, values, folder=folder, keep="best", precision=precision, metric=metric)
    assert result.best_step == 6 and result.steps == 12 and result.metrics["validation_loss"] == 1.0
    assert all(torch.equal(after[name], seen[2][name]) for name in after)
    if folder:
        assert "step-00000006" in [path.name for path in checkpoints.found(tmp_path)]
    other, last, seen, _ = best_run(tmp_path / "last", values, folder=folder, precision=precision, metric=metric)
    assert all(torch.equal(last[name], seen[5][name]) for name in last) and other.metrics["validation_loss"] == 6.0


def test_a_best_checkpoint_that_is_damaged_is_said_and_the_last_weights_kept(tmp_path):
    model = Model(CONFIG).initialize(0)
    seen, warned = [], []

    def validate(current):
        seen.append(weights(current))
        if len(seen) == 5:
            (checkpoints.place(tmp_path, 4) / "config.json").write_text("{}")
        return {"validation_loss": [3.0, 1.0, 5.0, 4.0, 6.0][len(seen) - 1]}

    wanted = settings(steps=10, evaluate_every=2, keep="best")
    hooks = hooks_of(model, validate=validate, warn=warned.append)
    Trainer(model, Causal(), windows(), wanted, steps=10, folder=tmp_path, hooks=hooks).train()
    assert len(warned) == 1 and "config.json" in warned[0] and "The last weights are kept" in warned[0]
    assert all(torch.equal(tensor, seen[-1][name]) for name, tensor in weights(model).items())


def test_patience_counts_validations_without_gain(tmp_path):
    result, after, seen, _ = best_run(tmp_path, [5.0, 4.0, 4.5, 4.0, 4.2, 1.0], patience=3)
    assert result.steps == 10 and len(seen) == 5
    assert all(torch.equal(after[name], seen[4][name]) for name in after)
    result, after, seen, _ = best_run(tmp_path / "b", [5.0, 4.0, 4.5, math.nan, 4.2, 1.0], patience=3, keep="best")
    assert result.steps == 10 and result.best_step == 4 and result.metrics["validation_loss"] == 4.0
    assert all(torch.equal(after[name], seen[1][name]) for name in after)


def test_a_metric_that_is_not_measured_is_refused_with_those_that_are(tmp_path):
    with pytest.raises(InputError, match='"f1" is not measured; the validation metrics are: accuracy, validation_loss'):
        best_run(tmp_path, [1.0], patience=2, metric="f1")


@given(values=st.lists(st.floats(-10, 10), min_size=1, max_size=30), patience=st.integers(1, 5), cut=st.integers(0, 29))
def test_best_is_the_first_smallest_and_comes_back_from_its_state(values, patience, cut):
    wanted = settings(patience=patience, evaluate_every=1)
    best = Best(wanted)
    for step, value in enumerate(values):
        best.update(step, {"validation_loss": value})
        if step == cut:
            other = Best(wanted)
            other.load_state(json.loads(json.dumps(best.state())))
            best = other
    assert best.value == min(values) and best.step == values.index(min(values))
    assert best.exhausted == (len(values) - 1 - best.step >= patience)


@examples(max_examples=30, deadline=None)
@given(count=st.integers(1, 80), buffer=st.integers(1, 40), seen=st.integers(0, 60), seed=st.integers(0, 5))
def test_a_streamed_shuffle_sees_all_and_goes_on_where_it_was(count, buffer, seen, seed):
    items = [TokenExample([number], [True] * (number % 7 + 1)) for number in range(count)]

    class Sized(TokenExample):
        def __len__(self):
            return len(self.mask)

    items = [Sized(item.ids, item.mask) for item in items]
    reads = []

    def read(start):
        reads.append(start)
        return iter(items[start:])

    def make():
        return StreamedExamples(read, batch_tokens=12, seed=seed, buffer=buffer)

    stream, epochs = make(), {}
    for _ in range(seen):
        batch = stream.next()
        assert sum(len(item) for item in batch) <= 12 or len(batch) == 1
        epochs.setdefault(stream.epoch, []).extend(item.ids[0] for item in batch)
    for epoch, ids in epochs.items():
        assert len(ids) == len(set(ids))
        if epoch < stream.epoch:
            assert sorted(ids) == list(range(count))
    other = make()
    other.load_state(json.loads(json.dumps(stream.state())))
    for _ in range(10):
        assert other.next() == stream.next() and other.seeds == stream.seeds and other.state() == stream.state()


def test_a_streamed_shuffle_shuffles_and_each_epoch_otherwise():
    items = [TokenExample([number, number], [True, True]) for number in range(100)]
    stream = StreamedExamples(lambda start: iter(items[start:]), batch_tokens=8, seed=1, buffer=30)
    orders = {0: [], 1: []}
    while stream.epoch < 2:
        batch = stream.next()
        orders.setdefault(stream.epoch, []).extend(item.ids[0] for item in batch)
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(100))
    assert orders[0] != list(range(100)) and orders[0] != orders[1]
    assert all(abs(place - number) < 30 for place, number in enumerate(orders[0]))


def test_an_empty_source_is_refused():
    with pytest.raises(InputError, match="no training example"):
        StreamedExamples(lambda start: iter(()), batch_tokens=8, seed=0).next()


def test_what_is_drawn_of_an_example_does_not_depend_on_its_batch():
    found = []
    for rows in (64, 256):
        stream = ExampleStream(TEXTS, batch_tokens=rows, seed=2)
        seeds = {}
        for _ in stream.plan(0):
            batch = stream.next()
            seeds |= {tuple(item.ids): own for item, own in zip(batch, micro_seeds(stream, 0, 0), strict=True)}
        found.append(seeds)
    assert found[0] == found[1] and len(set(found[0].values())) == len(TEXTS)
    assert micro_seeds(windows(), 0, 5) == micro_seeds(windows(), 0, 5) != micro_seeds(windows(), 0, 6)


def test_training_leaves_the_generators_of_others_alone():
    model = Model(CONFIG).initialize(0)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    Trainer(model, Drawing(), streamed(), settings(dropout=0.1), steps=3).train()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_full_disk_in_the_middle_of_a_run_is_resumed(tmp_path):
    """The run ends with a message; with room again it goes on from the checkpoint before and ends as it would have."""
    expected, whole, _, _ = best_run(tmp_path / "whole", [1.0] * 6)
    model, full = Model(CONFIG).initialize(0), [True]

    def save(place):
        hooks_of(model).save(place)
        if full[0] and place.name.startswith(".step-00000008"):
            raise OSError(28, "No space left on device")

    def run():
        hooks = hooks_of(model, validate=lambda current: {"validation_loss": 1.0})
        hooks.save = save
        wanted = settings(steps=12, evaluate_every=2, checkpoint_every=2)
        trainer = Trainer(model, Causal(), windows(), wanted, steps=12, folder=tmp_path / "cut", hooks=hooks)
        return trainer.train()

    with pytest.raises(QuatrainError, match="the disk is full"):
        run()
    assert [path.name for path in checkpoints.found(tmp_path / "cut")] == ["step-00000004", "step-00000006"]
    full[0] = False
    assert run().loss == expected.loss
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(model).items())


@pytest.mark.parametrize("seen", [0, 1, 2, 3, 5, 8])
def test_a_packed_stream_goes_on_where_it_was(seen):
    def make():
        return PackedStream(ragged(count=30, seed=1), length=40, rows=3, pad_id=0, seed=4)

    first, second = make(), make()
    for _ in range(seen):
        first.next()
    second.load_state(first.state())
    for _ in range(6):
        ours, theirs = first.next(), second.next()
        assert torch.equal(ours.input_ids, theirs.input_ids) and torch.equal(ours.segments, theirs.segments)


def test_an_epoch_of_a_packed_stream_has_every_example_once():
    examples = ragged(count=40, seed=2)
    stream = PackedStream(examples, length=64, rows=2, pad_id=0, seed=0)
    for epoch in range(2):
        plan = stream.plan(epoch)
        assert sorted(number for batch in plan for row in batch for number in row) == list(range(40))
        assert stream.plan(epoch) == plan != stream.plan(epoch + 1)
    with pytest.raises(InputError, match="does not fit a row of 10"):
        PackedStream(examples, length=10, rows=2, pad_id=0, seed=0)
