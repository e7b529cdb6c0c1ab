"""The trainer: every equivalent way to compute a step gives the step; a killed run goes on bit for bit."""

import copy
import json
import math
import os
import textwrap
import time

import forks
import numpy as np
import pytest
import torch
from tiny_training import CONFIG, FixedStream, hooks_of, ragged, settings, weights, windows

from quatrain.core.errors import InputError, QuatrainError
from quatrain.data.batches import TokenExample
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.training import checkpoints
from quatrain.training.objectives import Causal
from quatrain.training.streams import ExampleStream, WindowStream
from quatrain.training.trainer import Hooks, Trainer


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_learning_lowers_the_loss(optimizer):
    model = Model(CONFIG).initialize(0)
    entries = []
    trainer = Trainer(
        model,
        Causal(),
        windows(),
        settings(steps=60, optimizer=optimizer, learning_rate=1e-2),
        steps=60,
        hooks=Hooks(log=entries.append),
    )
    result = trainer.train()
    assert entries[0]["loss"] == pytest.approx(math.log(50), abs=0.2)
    assert result.loss < 3.0
    assert result.size == 60 * 4 * 32
    assert [entry["step"] for entry in entries] == list(range(1, 61))


def test_accumulation_is_exact_with_ragged_masks():
    examples = ragged()
    found = []
    for parts in (1, 2, 4, 8):
        model = Model(CONFIG).initialize(0)
        share = len(examples) // parts
        stream = FixedStream([examples[i * share : (i + 1) * share] for i in range(parts)])
        wanted = settings(steps=1, warmup_steps=0, schedule="constant", accumulation=parts)
        trainer = Trainer(model, Causal(), stream, wanted, steps=1)
        norms = []
        trainer.hooks.log = lambda entry, norms=norms: norms.append((entry["loss"], entry["grad_norm"]))
        trainer.train()
        found.append((weights(model), norms[0]))
    reference, figures = found[0]
    for other, numbers in found[1:]:
        assert numbers == pytest.approx(figures, rel=1e-5)
        for name, tensor in reference.items():
            torch.testing.assert_close(other[name], tensor, atol=1e-6, rtol=0)


def test_the_loss_is_the_mean_over_learned_tokens_of_all_micro_batches():
    examples = ragged()
    model = Model(CONFIG).initialize(0)
    total, count = 0.0, 0
    for example in examples:
        logits, _ = model(torch.tensor([example.ids]))
        logs = logits[0].log_softmax(-1)
        for place in range(1, len(example)):
            if example.mask[place]:
                total -= logs[place - 1, example.ids[place]].item()
                count += 1
    entries = []
    Trainer(
        model,
        Causal(),
        FixedStream([examples[:3], examples[3:]]),
        settings(steps=1, warmup_steps=0, schedule="constant", accumulation=2),
        steps=1,
        hooks=Hooks(log=entries.append),
    ).train()
    assert entries[0]["loss"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "wsd"])
def test_a_training_whose_every_rate_is_zero_is_refused(schedule):
    # by epochs, whose number of steps is known late
    wanted = settings(steps=None, epochs=1, warmup_steps=0, schedule=schedule)
    with pytest.raises(InputError, match="only that step"):
        Trainer(Model(CONFIG).initialize(0), Causal(), windows(), wanted, steps=1).train()
    for steps, more in ((2, {}), (1, {"warmup_steps": 1}), (1, {"min_learning_rate_ratio": 0.1})):
        given = wanted.model_copy(update=more)
        assert any(given.rates(steps))


def test_clipping_bounds_the_gradient():
    norms = {}
    for clip in (0.0, 0.05):
        model = Model(CONFIG).initialize(0)
        wanted = settings(steps=1, warmup_steps=0, schedule="constant", max_grad_norm=clip)
        trainer = Trainer(model, Causal(), windows(), wanted, steps=1)
        trainer.train()
        gradients = [master.grad for master in trainer.weights.masters.values()]
        norms[clip] = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    assert norms[0.0] > 0.1
    assert norms[0.05] == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "precision", "dropout"),
    [("adamw", "float32", 0.0), ("muon", "float32", 0.1), ("muon", "bfloat16", 0.0), ("adamw", "bfloat16", 0.2)],
)
def test_stopped_twice_and_resumed_is_never_stopped_bit_for_bit(tmp_path, optimizer, precision, dropout):
    config = CONFIG.replace(dropout=dropout)
    wanted = settings(optimizer=optimizer, precision=precision, dropout=dropout, checkpoint_every=1)

    def run(folder, stop_after=()):
        model = Model(config).initialize(0)
        stops = set(stop_after)

        def progress(step, **metrics):
            if step in stops:
                raise KeyboardInterrupt

        hooks = hooks_of(model, progress=progress)
        Trainer(model, Causal(), windows(), wanted, steps=12, folder=folder, hooks=hooks).train()
        return weights(model)

    whole = run(tmp_path / "whole")
    for stop in (5, 9):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", stop_after=(stop,))
    resumed = run(tmp_path / "cut")
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from tiny_training import CONFIG, hooks_of, settings, windows
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Model
from quatrain.training.objectives import Causal
from quatrain.training.trainer import Trainer
folder = Path(sys.argv[1])
model = Model(CONFIG).initialize(0)
steps = 150
wanted = settings(steps=steps, optimizer="muon", checkpoint_every=2)
hooks = hooks_of(model, progress=lambda step, **m: print(step, flush=True))
trainer = Trainer(model, Causal(), windows(), wanted, steps=steps, folder=folder / "checkpoints", hooks=hooks)
trainer.train()
model_folder.save(model, folder / "model")
"""


@pytest.mark.slow
def test_sigkill_at_random_moments_loses_nothing(tmp_path):
    """SIGKILL during steps and checkpoint writes: the weights in the end are those of the run that was left alone."""
    here = os.path.join(os.path.dirname(__file__), "..", "support")

    def start(folder):
        return forks.start(["-c", textwrap.dedent(KILLED), str(folder), here])

    whole = start(tmp_path / "whole")
    assert whole.wait() == 0, whole.errors()
    generator = np.random.default_rng(int(time.time()))
    kills = 0
    for _ in range(20):
        process = start(tmp_path / "cut")
        if kills < 4:
            while not process.output() and process.poll() is None:
                time.sleep(0.005)
            time.sleep(float(generator.uniform(0.02, 0.5)))
            if process.poll() is None:
                process.kill()
                kills += 1
        if process.wait() == 0:
            break
    assert kills >= 1
    expected, found = model_folder.load(tmp_path / "whole" / "model"), model_folder.load(tmp_path / "cut" / "model")
    for (name, tensor), other in zip(expected.state_dict().items(), found.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name


def test_a_damaged_checkpoint_is_named_and_an_earlier_one_used(tmp_path):
    model = Model(CONFIG).initialize(0)

    def progress(step, **metrics):
        if step == 7:
            raise KeyboardInterrupt

    wanted = settings(checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        Trainer(
            model, Causal(), windows(), wanted, steps=12, folder=tmp_path, hooks=hooks_of(model, progress=progress)
        ).train()
    newest = checkpoints.found(tmp_path)[-1]
    assert newest.name == "step-00000006"
    path = newest / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(QuatrainError, match=r"model\.safetensors: its SHA-256"):
        checkpoints.check(newest)
    warnings, resumed = [], []
    fresh = Model(CONFIG).initialize(1)
    Trainer(
        fresh,
        Causal(),
        windows(),
        wanted,
        steps=12,
        folder=tmp_path,
        hooks=hooks_of(fresh, warn=warnings.append, resumed=resumed.append),
    ).train()
    assert resumed == [4]
    assert "step-00000006" in warnings[0] and "model.safetensors" in warnings[0]
    left_alone = Model(CONFIG).initialize(0)
    Trainer(left_alone, Causal(), windows(), wanted, steps=12).train()
    for name, tensor in weights(left_alone).items():
        assert torch.equal(fresh.state_dict()[name], tensor), name


@pytest.mark.parametrize("damage", ["cut", "missing", "manifest"])
def test_every_kind_of_damage_is_refused_by_name(tmp_path, damage):
    model = Model(CONFIG).initialize(0)
    place = checkpoints.write(
        tmp_path, 3, weights=lambda folder: model_folder.save(model, folder), tensors={}, state={"step": 3}
    )
    checkpoints.check(place)
    name = "config.json"
    if damage == "cut":
        (place / name).write_bytes((place / name).read_bytes()[:-1])
    elif damage == "missing":
        (place / name).unlink()
    else:
        name = "manifest.json"
        (place / name).write_text("{")
    with pytest.raises(QuatrainError) as caught:
        checkpoints.check(place)
    assert name in str(caught.value)
    assert checkpoints.newest_intact(tmp_path, lambda text: None) is None


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(tmp_path):
    model = Model(CONFIG).initialize(0)
    first = checkpoints.write(
        tmp_path, 1, weights=lambda folder: model_folder.save(model, folder), tensors={}, state={"step": 1}
    )

    def full(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(QuatrainError, match="full"):
        checkpoints.write(tmp_path, 2, weights=full, tensors={}, state={"step": 2})
    assert checkpoints.newest_intact(tmp_path, pytest.fail) == first
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_a_loss_that_is_no_number_stops_the_run_with_a_remedy():
    model = Model(CONFIG).initialize(0)
    with torch.no_grad():
        model.norm.weight[0] = math.nan
    with pytest.raises(QuatrainError, match="learning_rate"):
        Trainer(model, Causal(), windows(), settings(), steps=12).train()


def test_bfloat16_keeps_float32_masters_and_frozen_weights():
    model = Model(CONFIG).initialize(0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "layers.1" in name
    before = weights(model)
    Trainer(model, Causal(), windows(), settings(precision="bfloat16", learning_rate=1e-4), steps=3).train()
    for name, tensor in weights(model).items():
        assert tensor.dtype == torch.float32
        moved = not torch.equal(tensor, before[name])
        assert moved == ("layers.1" in name), name
    # Steps of 1e-4 are below bfloat16's resolution around 1; the masters keep them.
    change = (weights(model)["layers.1.input_layernorm.weight"] - before["layers.1.input_layernorm.weight"]).abs()
    assert 0 < change.max() < 1e-3


def test_bfloat16_follows_float32():
    ends = []
    for precision in ("float32", "bfloat16"):
        model = Model(CONFIG).initialize(0)
        ends.append(
            Trainer(model, Causal(), windows(), settings(steps=40, precision=precision, learning_rate=1e-2), steps=40)
            .train()
            .loss
        )
    assert ends[1] == pytest.approx(ends[0], abs=0.05)


def test_validation_does_not_change_training():
    ends = []
    for every in (0, 3):
        model = Model(CONFIG.replace(dropout=0.1)).initialize(0)
        hooks = Hooks(validate=lambda current: {"validation_loss": current(torch.arange(8)[None])[0].sum().item()})
        Trainer(model, Causal(), windows(), settings(dropout=0.1, evaluate_every=every), steps=12, hooks=hooks).train()
        ends.append(weights(model))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_looking_at_what_it_says_does_not_change_training():
    def look(model):
        assert not model.training
        torch.rand(3)  # whatever is drawn there is not drawn from the training's numbers
        return [{"prompt": "a", "output": "b"}]

    seen = []
    model, other = (Model(CONFIG.replace(dropout=0.1)).initialize(0) for _ in range(2))
    Trainer(model, Causal(), windows(), settings(sample_every=5), steps=12,
            hooks=Hooks(sample=look, log=seen.append)).train()  # fmt: skip
    Trainer(other, Causal(), windows(), settings(), steps=12).train()
    assert [entry["step"] for entry in seen if "samples" in entry] == [5, 10]
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_state_is_json_and_safetensors_only(tmp_path):
    model = Model(CONFIG).initialize(0)
    trainer = Trainer(
        model, Causal(), windows(), settings(checkpoint_every=5), steps=12, folder=tmp_path, hooks=hooks_of(model)
    )
    trainer.train()
    place = checkpoints.found(tmp_path)[-1]
    kinds = {path.suffix for path in place.rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"}
    state = json.loads((place / checkpoints.STATE).read_text())
    assert state["step"] == 10 and state["stream"]["index"] == 10


def test_resume_after_copying_the_folder_elsewhere(tmp_path):
    model = Model(CONFIG).initialize(0)
    Trainer(
        model, Causal(), windows(), settings(checkpoint_every=6), steps=12, folder=tmp_path / "a", hooks=hooks_of(model)
    ).train()
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    other = Model(CONFIG).initialize(5)
    Trainer(
        other,
        Causal(),
        windows(),
        settings(checkpoint_every=6),
        steps=12,
        folder=tmp_path / "elsewhere",
        hooks=hooks_of(other),
    ).train()
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in weights(model).items())


def test_example_stream_batches_by_length_and_sees_all():
    examples = [TokenExample(list(range(n)), [True] * n) for n in np.random.default_rng(0).integers(2, 40, 300)]
    stream = ExampleStream(examples, batch_tokens=200, seed=1)
    plan = stream.plan(0)
    assert sorted(index for batch in plan for index in batch) == list(range(300))
    for batch in plan:
        longest = max(len(examples[index]) for index in batch)
        assert longest * len(batch) <= 200 or len(batch) == 1
    padded = sum(max(len(examples[i]) for i in batch) * len(batch) for batch in plan)
    assert padded < 1.35 * sum(map(len, examples))
    assert copy.deepcopy(plan) == stream.plan(0) and plan != stream.plan(1)
    assert stream.steps(2) == len(stream.plan(0)) + len(stream.plan(1))


def test_window_stream_covers_the_text_once_an_epoch():
    text = np.arange(1000, dtype=np.uint16)
    stream = WindowStream(text, length=32, rows=4, seed=2)
    plan = stream.plan(0)
    batches = [stream.next() for _ in plan]
    seen = torch.cat([batch.input_ids.flatten() for batch in batches])
    assert len(seen.unique()) >= 1000 - 2 * 32
    assert all(torch.equal(batch.input_ids[:, 1:], batch.labels[:, :-1]) for batch in batches)
    first = stream.state()
    again = WindowStream(text, length=32, rows=4, seed=2)
    again.load_state(first)
    assert torch.equal(stream.next().input_ids, again.next().input_ids)
    assert stream.epoch == 1


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_windows_with_a_stride_overlap_and_cover_the_text(stride):
    text = np.arange(100)
    stream = WindowStream(text, length=8, rows=1, seed=0, stride=stride)
    starts = sorted(int(stream.next().input_ids[0, 0]) for _ in range(len(stream.plan(0))))
    assert set(np.diff(starts)) == {stride} and starts[0] < stride and starts[-1] > 100 - 9 - stride
    with pytest.raises(InputError, match="stride 9: must be from 1 to the 8"):
        WindowStream(text, length=8, rows=1, seed=0, stride=9)


def test_a_text_shorter_than_one_context_is_refused_with_the_counts():
    with pytest.raises(InputError, match="20 tokens, fewer than one context of 32"):
        WindowStream(np.arange(20), length=32, rows=4, seed=0)
