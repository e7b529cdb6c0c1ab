"""Guards: bad steps stop or are skipped, with their batch kept; memory that does not suffice is explained by its parts;
weights that do not learn are named."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import CONFIG, FixedStream, hooks_of, ragged, settings, weights, windows

from quatrain.core.errors import QuatrainError
from quatrain.core.settings import parse
from quatrain.models.transformer.stack import Model
from quatrain.planning.training_memory import step_activations
from quatrain.training import memory
from quatrain.training.guards import ENOUGH, MOST_SKIPPED, Guard, where_from
from quatrain.training.objectives import Causal
from quatrain.training.settings import TrainSettings
from quatrain.training.trainer import Hooks, Trainer


class Spoiled(Causal):
    """Next-token prediction whose loss is multiplied by something on chosen micro-batches, counted from 0."""

    def __init__(self, factors):
        super().__init__()
        self.factors, self.seen = factors, -1

    def loss(self, model, batch):
        self.seen += 1
        loss, weight, metrics = super().loss(model, batch)
        return loss * self.factors.get(self.seen, 1.0), weight, metrics


def test_stop_names_step_and_micro_batch_and_keeps_the_batch(tmp_path):
    model = Model(CONFIG).initialize(0)
    examples = ragged()
    parts = [examples[:3], examples[3:]] * 3
    hooks = hooks_of(model, describe=lambda batch: [str(row.tolist()) for row in batch.input_ids])
    trainer = Trainer(
        model,
        Spoiled({3: math.nan}),
        FixedStream(parts),
        settings(steps=3, warmup_steps=0, accumulation=2),
        steps=3,
        folder=tmp_path / "checkpoints",
        hooks=hooks,
    )
    with pytest.raises(QuatrainError, match=r"Step 2: the loss is nan.*Micro-batch 2 of 2.*bad-steps") as caught:
        trainer.train()
    assert "learning_rate" in str(caught.value) and "step-00000002" in str(caught.value)
    place = tmp_path / "bad-steps" / "step-00000002"
    tensors, about = load_file(place / "batch.safetensors"), json.loads((place / "about.json").read_text())
    batch = Causal().collate(parts[3])
    assert torch.equal(tensors["1.input_ids"], batch.input_ids) and torch.equal(tensors["1.labels"], batch.labels)
    assert about["step"] == 2 and about["losses"][1] == "nan" and math.isfinite(about["losses"][0])
    assert about["text"][1] == [str(row.tolist()) for row in batch.input_ids]


def test_the_first_module_that_leaves_the_numbers_is_named():
    model = Model(CONFIG).initialize(0)
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight.normal_()
        model.layers[1].mlp.up_proj.weight.fill_(3e38)
    with pytest.raises(QuatrainError, match=r"The forward pass first gives NaN or inf in layers\.1\.mlp\.up_proj"):
        Trainer(model, Causal(), windows(), settings(), steps=12).train()


def test_weights_that_are_no_numbers_are_named():
    model = Model(CONFIG).initialize(0)
    with torch.no_grad():
        model.layers[0].self_attn.q_proj.weight[0, 0] = math.inf
    with pytest.raises(QuatrainError, match=r"already contain NaN or inf: layers\.0\.self_attn\.q_proj\.weight"):
        Trainer(model, Causal(), windows(), settings(), steps=12).train()


def test_a_gradient_that_is_no_number_is_named():
    model = Model(CONFIG).initialize(0)
    model.layers[1].mlp.down_proj.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(QuatrainError, match=r"these gradients contain NaN or inf: layers\.1\.mlp\.down_proj"):
        Trainer(model, Causal(), windows(), settings(), steps=12).train()


def run_spoiled(factors, tmp_path=None, steps=30, **changes):
    model = Model(CONFIG).initialize(0)
    warned, logged = [], []
    hooks = Hooks(warn=warned.append, log=logged.append)
    trainer = Trainer(
        model,
        Spoiled(factors),
        windows(),
        settings(steps=steps, **changes),
        steps=steps,
        faults=None if tmp_path is None else tmp_path / "faults",
        hooks=hooks,
    )
    return trainer.train(), weights(model), warned, logged


def test_skip_leaves_the_weights_and_goes_on(tmp_path):
    result, after, warned, logged = run_spoiled({7: math.inf}, tmp_path, steps=8, on_bad_step="skip")
    _, before, _, _ = run_spoiled({7: 0.0, 6: 1.0}, steps=7, schedule="constant")
    assert result.skipped == 1 and result.steps == 8 and len(warned) == 1 and "Step 8 was skipped" in warned[0]
    assert logged[-1] == {"step": 8, "skipped": 1, "tokens": 8 * 128}
    assert (tmp_path / "faults" / "step-00000008" / "batch.safetensors").is_file()
    _, same, _, _ = run_spoiled({7: math.nan}, steps=8, on_bad_step="skip")
    assert all(torch.equal(after[name], same[name]) for name in after)
    assert any(not torch.equal(after[name], before[name]) for name in after)  # another schedule, another end


def test_a_spike_is_told_from_the_running_median():
    result, _, warned, _ = run_spoiled({20: 5.0}, loss_spike_factor=3.0, on_bad_step="skip")
    assert result.skipped == 1 and "5." in warned[0] and "times the running median" in warned[0]
    with pytest.raises(QuatrainError, match=r"Step 21: the loss of .* times the running median"):
        run_spoiled({20: 5.0}, loss_spike_factor=3.0)
    assert run_spoiled({20: 5.0})[0].skipped == 0
    assert run_spoiled({20: 2.0}, loss_spike_factor=3.0)[0].skipped == 0
    assert run_spoiled({ENOUGH - 1: 5.0}, loss_spike_factor=3.0)[0].skipped == 0  # too early to tell


def test_skipping_without_end_stops():
    spoiled = {number: math.nan for number in range(3, 30)}
    with pytest.raises(QuatrainError, match=f"Step {3 + MOST_SKIPPED}: .*{MOST_SKIPPED}th consecutive bad step"):
        run_spoiled(spoiled, on_bad_step="skip")


def test_guard_counts_come_back():
    guard = Guard(settings(on_bad_step="skip"))
    guard.skip()
    other = Guard(settings(on_bad_step="skip"))
    other.load_state(guard.state())
    assert other.state() == {"skipped": 1, "in_a_row": 1}


def test_a_tensor_without_gradient_is_named_by_step_three():
    model = Model(CONFIG).initialize(0)
    model.unused = torch.nn.Parameter(torch.ones(3))
    warned = []
    Trainer(model, Causal(), windows(), settings(), steps=3, hooks=Hooks(warn=warned.append)).train()
    assert len(warned) == 1 and "no gradient reaches unused." in warned[0]


def test_a_tensor_that_does_not_change_is_named_by_step_three():
    model = Model(CONFIG).initialize(0)
    name = "layers.0.mlp.up_proj.weight"
    model.get_parameter(name).register_hook(lambda gradient: torch.full_like(gradient, 1e-18))
    warned = []
    Trainer(
        model,
        Causal(),
        windows(),
        settings(weight_decay=0.0, max_grad_norm=0.0),
        steps=3,
        hooks=Hooks(warn=warned.append),
    ).train()
    assert len(warned) == 1 and f"the optimizer does not change {name}" in warned[0]


@pytest.mark.parametrize("tied", [True, False])
def test_nothing_is_said_of_weights_that_learn(tied):
    """A head of its own starts at zero, so that the first gradient reaches nothing else."""
    warned = []
    model = Model(replace(CONFIG, tie_word_embeddings=tied)).initialize(0)
    Trainer(model, Causal(), windows(), settings(), steps=3, hooks=Hooks(warn=warned.append)).train()
    assert warned == []


def test_a_loss_that_reaches_no_weight_is_refused():
    model = Model(CONFIG).initialize(0)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.unused = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(QuatrainError, match="does not depend on a trainable weight"):
        Trainer(model, Causal(), windows(), settings(), steps=2).train()


class Exhausted(Causal):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def loss(self, model, batch):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_out_of_memory_names_the_largest_part_and_a_remedy(error):
    model = Model(CONFIG).initialize(0)
    wanted = settings(accumulation=2)
    hooks = Hooks(estimate=lambda shape, precision: step_activations(CONFIG, wanted, shape, precision=precision))
    trainer = Trainer(model, Exhausted(error), windows(), wanted, steps=3, hooks=hooks)
    with pytest.raises(QuatrainError, match=r"Step 1 needs more memory.*The largest part is the") as caught:
        trainer.train()
    assert "train.accumulation = 4 (now 2)" in str(caught.value)
    assert not model.training


def test_a_real_allocation_that_fails_is_explained():
    class Greedy(Causal):
        def loss(self, model, batch):
            torch.empty(1 << 60, dtype=torch.uint8)
            return super().loss(model, batch)

    with pytest.raises(QuatrainError, match="needs more memory"):
        Trainer(Model(CONFIG).initialize(0), Greedy(), windows(), settings(), steps=1).train()


def test_another_error_is_left_alone():
    with pytest.raises(RuntimeError, match="shapes"):
        Trainer(
            Model(CONFIG).initialize(0), Exhausted(RuntimeError("shapes do not fit")), windows(), settings(), steps=1
        ).train()


@pytest.mark.parametrize(
    ("largest", "changes", "shape", "precision", "said"),
    [
        ("logits", {"chunked_loss": False}, (8, 64), "float32", 'chunked_loss = "auto"'),
        ("logits", {}, (8, 64), "float32", "accumulation = 2"),
        ("activations", {}, (8, 64), "float32", "accumulation = 2"),
        ("activations", {}, (1, 64), "float32", "activation_checkpointing = true"),
        ("activations", {"activation_checkpointing": True}, (1, 64), "float32", 'precision = "bfloat16"'),
        ("activations", {"activation_checkpointing": True}, (1, 64), "bfloat16", "shorter context"),
        ("optimizer", {}, (8, 64), "float32", 'optimizer = "adamw8bit"'),
        ("optimizer", {"optimizer": "muon"}, (8, 64), "float32", 'optimizer = "adamw8bit"'),
        ("optimizer", {"optimizer": "adamw8bit"}, (8, 64), "float32", "adapter"),
        ("gradients", {}, (8, 64), "float32", "adapter"),
        ("weights", {}, (8, 64), "float32", "smaller model"),
    ],
)
def test_one_change_that_helps(largest, changes, shape, precision, said):
    parts = dict.fromkeys(("weights", "gradients", "optimizer", "activations", "logits"), 10) | {largest: 2_000_000}
    error = memory.explain(
        MemoryError(), parts, settings(**changes), step=3, shape=shape, precision=precision, adapted=False
    )
    assert f"The largest part is the {largest}: 2.0 MB" in str(error) and said in str(error)


def test_memory_is_measured_by_part():
    model = Model(CONFIG).initialize(0)
    result = Trainer(model, Causal(), windows(), settings(), steps=2).train()
    elements = model.num_parameters()
    assert result.memory["weights"] == result.memory["gradients"] == 4 * elements
    assert result.memory["optimizer"] == pytest.approx(8 * elements, rel=0.01)
    assert result.memory["logits"] == 4 * 32 * 50 * 4
    assert result.memory["peak"] > result.memory["activations"] > 4 * 32 * 32 * 4 * 2
    narrow = Trainer(
        Model(CONFIG).initialize(0), Causal(), windows(), settings(activation_checkpointing=True), steps=2
    ).train()
    assert narrow.memory["activations"] < result.memory["activations"] / 3


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(QuatrainError) as caught:
        parse(TrainSettings, {"steps": 100, "loss_spike_factor": 0.5, "patience": 2, "on_bad_step": "wait"})
    text = str(caught.value)
    assert "loss_spike_factor: 0.5" in text and "evaluate_every: 0" in text and "on_bad_step" in text


def test_sparse_gradients_that_are_not_finite_are_named():
    model = torch.nn.Embedding(4, 2, sparse=True)
    (model(torch.tensor([1, 1])).sum() * math.inf).backward()
    model.weight.grad = model.weight.grad.coalesce()
    found = where_from(model, dict(model.named_parameters()), [None], [1.0], lambda batch: None)
    assert found == " The loss is finite; these gradients contain NaN or inf: weight."
