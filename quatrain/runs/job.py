"""A `TrainingJob`: everything that the training of one stage depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from quatrain.adapters.settings import AdapterSettings
from quatrain.alignment.watch import Watch
from quatrain.models.transformer.stack import Model
from quatrain.tasks.records import RecordTask
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training.objectives import Objective
from quatrain.training.settings import TrainSettings
from quatrain.training.streams import BatchStream

Validate = Callable[[Model], dict[str, float]]
Sample = Callable[[Model], list[dict[str, Any]]]


@dataclass
class TrainingData:
    """What a stage trains on: a stream, its number of steps, its first or all examples, and those held out."""

    stream: BatchStream
    steps: int
    examples: Sequence[Any]
    held_out: Sequence[Any] = ()


@dataclass
class TrainingJob:
    """Everything that the training of one stage depends on.

    `examples` are the examples of the stream where they can be counted (None for windows of a running text). `length`
    is the typical length of a row in tokens, `limit` the longest row that the model may read. `held_out` are the
    examples of validations, on which `validate` measures a model; with `compare` it also measures the model before the
    training. `notes` are for the reader. `sample` generates text for `train.sample_every`. `adapters` names those that
    are trained together, each by its own set of examples. `task` is the task that a model's head learns. `chats` tells
    the preflight that the examples are rendered chats. `watch` raises alarms from the logged metrics of an alignment,
    and `outcome` measures the model on held-out prompts, before (None) and after it, beside the model of the start.
    `trainee` is what the trainer trains, if that is more than the
    model; its `save_value` and `load_value` write and read the rest beside the weights of a checkpoint. `describe`
    returns a readable form of a batch that is not one of token ids, to be saved where a step fails. `masks`
    names, for linear layers by their path, the weights that are not kept at 0 (pruning).
    """

    model: Model
    tokenizer: Tokenizer
    objective: Objective
    stream: BatchStream
    settings: TrainSettings
    steps: int
    length: int
    limit: int
    examples: Sequence[Any] | None = None
    held_out: Sequence[Any] = ()
    validate: Validate | None = None
    sample: Sample | None = None
    adapter: AdapterSettings | None = None
    compare: bool = False
    notes: list[str] = field(default_factory=list)
    adapters: tuple[str, ...] = ()
    task: RecordTask | None = None
    chats: bool = False
    watch: Watch | None = None
    outcome: Callable[[Any], dict[str, Any]] | None = None
    trainee: Any = None
    describe: Callable[[Any], Any] | None = None
    masks: dict[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> nn.Module:
        """What the trainer trains: the model, and perhaps more."""
        trained: nn.Module = self.model if self.trainee is None else self.trainee
        return trained
