"""A training that is stopped and resumed from its checkpoint, and one that runs through: weights bit for bit."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quatrain.core.wording import format_bytes
from quatrain.evaluation.doctor.check import Check, DoesNotApply, Finding, NotRun
from quatrain.evaluation.doctor.checks.training import FixedBatches, collated_objective, labelled_batches
from quatrain.evaluation.doctor.subject import ModelUnderTest
from quatrain.models.io import model_folder
from quatrain.planning.machine import free_disk
from quatrain.training.settings import TrainSettings
from quatrain.training.trainer import Hooks, Trainer

STEPS, STOPPED_IN = 4, 3
MOST_BYTES = 1 << 30
"""Larger models are not trained here: weights and optimizer states are written several times."""


class _Stopped(BaseException):
    """Ends a training in the middle of a step's report, as a signal would."""


def _resumed(subject: ModelUnderTest) -> Finding:
    subject.require_decoder("the training that is stopped here")
    subject.require_floats("a training of every weight")
    if subject.resolved.is_adapter or subject.resolved.adapters:
        raise DoesNotApply("an adapter's checkpoint holds the adapter alone; its base is checked instead")
    size = sum(parameter.nbytes for parameter in subject.model.parameters())
    if size > MOST_BYTES or 8 * size > (free_disk(subject.folder("training")) or 1 << 62):
        raise NotRun(f"the weights take {format_bytes(size)}, and checkpoints several times as much")
    whole = _trained(subject, subject.folder("training/whole"))
    for stop in (STOPPED_IN, None):
        found = _trained(subject, subject.folder("training/stopped"), stop)
    wrong = [name for name, tensor in whole.items() if not torch.equal(tensor, found[name])]
    detail = f"{STEPS} steps, stopped in step {STOPPED_IN}"
    return Finding(len(wrong), f"{detail}; different: {', '.join(wrong[:4])}" if wrong else detail)


def _trained(subject: ModelUnderTest, folder: Path, stop: int | None = None) -> dict[str, Tensor]:
    """The weights after a training in a folder, or at its end in step `stop`."""
    model = copy.deepcopy(subject.model).requires_grad_(True)

    def progress(step: int, **metrics: Any) -> None:
        if step == stop:
            raise _Stopped

    hooks = Hooks(
        save=lambda place: model_folder.save(model, place),
        load=lambda place: _load(model, model_folder.load(place).state_dict()),
        progress=progress,
    )
    settings = TrainSettings(
        steps=STEPS, batch_tokens=64, learning_rate=1e-3, warmup_steps=0, precision="float32", checkpoint_every=1
    )
    stream: Any = FixedBatches(labelled_batches(subject, 2))
    objective = collated_objective(subject)
    with contextlib.suppress(_Stopped):
        Trainer(model, objective, stream, settings, steps=STEPS, seed=0, folder=folder, hooks=hooks).train()
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _load(model: Any, tensors: dict[str, Tensor]) -> None:
    model.load_state_dict(tensors)


CHECKS = (
    Check(
        "resume",
        "a training stopped and resumed, and one that ran through: weights bit for bit",
        "tensors",
        0,
        "A resumed run of this model is another run than one that was never stopped. On a GPU some kernels add in any "
        "order, which alone can do this; on a CPU report the model's config.json.",
        _resumed,
    ),
)
