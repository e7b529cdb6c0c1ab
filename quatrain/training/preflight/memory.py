"""The peak memory of a training run before it runs: counts of weights, gradients and states, and the probe's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from quatrain.adaptation import lora
from quatrain.adaptation.settings import AdapterSettings
from quatrain.adaptation.token_rows import learn_rows
from quatrain.models.config import ModelConfig
from quatrain.models.stack import Model
from quatrain.planning.counts import BYTES
from quatrain.planning.machine import resident_memory
from quatrain.planning.memory import PeakMemory, TrainingShape, peak_memory_of
from quatrain.training.objectives import Causal, Objective
from quatrain.training.optimizers import Muon, make_optimizers
from quatrain.training.precision import DTYPES
from quatrain.training.preflight.probe import ask
from quatrain.training.settings import TrainSettings
from quatrain.training.streams import WindowStream
from quatrain.training.trainer import Trainer


@dataclass(frozen=True)
class BatchShape:
    """A micro-batch: its rows, the tokens of each with padding, and for an encoder-decoder those of its target."""

    rows: int
    length: int
    decoder_length: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens read, with padding."""
        return self.rows * self.length


@dataclass(frozen=True)
class Sizes:
    """Elements of a model and of its training: all weights, those that train, the optimizer's state; bytes of an update."""

    weights: int
    gradients: int
    trained: int
    states: int
    update: int
    """Bytes that the optimizer's step needs for a moment."""


def unfilled(
    config: ModelConfig, adapter: AdapterSettings | None = None, special_ids: Sequence[int] = ()
) -> Model:
    """The model as it would train, its memory reserved and not touched: every shape, no value."""
    with torch.device("meta"):
        model = Model(config)
        if adapter is not None:
            lora.apply(model, adapter)
            if adapter.tokens == "special" and special_ids:
                learn_rows(model, sorted(special_ids))
    return model


def sizes(model: Model, settings: TrainSettings, precision: str) -> Sizes:
    """What the model and the optimizer of its training come to."""
    trained, total, _ = lora.trainable_report(model)
    stand_ins = {
        name: torch.nn.Parameter(torch.empty(0).new_empty((0, *parameter.shape[1:])))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    shapes = {stand_ins[name]: parameter.shape for name, parameter in model.named_parameters() if name in stand_ins}
    states = update = 0
    for optimizer in make_optimizers(stand_ins, settings, dtype=DTYPES[precision]) if stand_ins else ():
        of_matrix = isinstance(optimizer, Muon)
        own = [shapes[parameter] for group in optimizer.param_groups for parameter in group["params"]]
        states += sum(shape.numel() for shape in own) * (1 if of_matrix else 2)
        if of_matrix:
            update = max(_muon_bytes(shape, own.count(shape), BYTES[precision]) for shape in set(own))
    gradients = sum(shape.numel() for shape in shapes.values())
    return Sizes(total, gradients, trained, states, update)


def _muon_bytes(shape: torch.Size, count: int, size: int) -> int:
    """What Muon's step holds for all matrices of a shape: their momentum twice, and the iteration's matrices."""
    every, square = count * shape.numel(), count * min(shape) ** 2
    return every * (2 * 4 + 2 * size) + 2 * square * size


def training_peak(
    config: ModelConfig,
    settings: TrainSettings,
    objective: Objective,
    batch: BatchShape,
    *,
    precision: str,
    adapter: AdapterSettings | None = None,
    special_ids: Sequence[int] = (),
    checkpoints: bool = True,
    rest: int = 0,
) -> PeakMemory:
    """The peak memory of this training by part, in bytes; `rest` is what the process holds besides.

    `precision` is the resolved one; `checkpoints` says whether any is written on the way.
    """
    model = unfilled(config, adapter, special_ids)
    found = sizes(model, settings, precision)
    head = 0 if model.lm_head is None else sum(p.numel() for p in model.lm_head.parameters() if p.requires_grad)
    shape = TrainingShape(
        weights=found.weights,
        trained=found.gradients,
        states=found.states,
        precision=precision,
        accumulation=settings.accumulation,
        update=found.update,
        files=file_bytes(found, adapter) if checkpoints else 0,
        head=head,
        activations=ask(
            config,
            settings,
            objective,
            rows=batch.rows,
            length=batch.length,
            precision=precision,
            adapter=adapter,
            decoder_length=batch.decoder_length,
        ),
    )
    return peak_memory_of(shape, rest)


def file_bytes(found: Sizes, adapter: AdapterSettings | None) -> int:
    """What the writing of a checkpoint copies: the optimizer's state twice, to bytes and to one text of bytes."""
    return 2 * 4 * found.states


def process_bytes() -> int:
    """Bytes of RAM that this process holds beside a training, once a first step has loaded what it needs.

    A step of the smallest model is taken, since torch loads parts of itself, some 100 MB, when they are first used.
    """
    config = ModelConfig(
        family="llama", vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=8,
    )  # fmt: skip
    settings = TrainSettings(steps=1, warmup=0, batch_tokens=8, optimizer="muon", precision="bfloat16")
    stream = WindowStream(np.zeros(64, dtype=np.int64), length=8, rows=1, seed=0)
    Trainer(Model(config).initialize(0), Causal(), stream, settings, steps=1).train()
    return resident_memory()
