"""Runs the `TrainingJob` of a stage: the adapter, the trainer with its hooks, the model folder and the result."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from quatrain.adapters import state
from quatrain.adapters.adapter_set import AdapterSet
from quatrain.adapters.apply import (
    adapters_disabled,
    apply_adapter,
    count_trainable_parameters,
    merge_adapters,
    unmergeable_reason,
)
from quatrain.adapters.layer import adapter_layers
from quatrain.adapters.peft_files import check_writable, group, save_adapter
from quatrain.adapters.peft_layers import file_layers
from quatrain.adapters.settings import PROMPT_METHODS, AdapterSettings
from quatrain.adapters.trainable_tokens import train_tokens
from quatrain.alignment.watch import Watch
from quatrain.compression import methods
from quatrain.compression.constrained import quantization_aware, sparse
from quatrain.compression.layer import QuantizedLinear
from quatrain.core.errors import InputError
from quatrain.core.progress import MetricsLog, Reporter, read_metrics
from quatrain.core.tracking import Trackers
from quatrain.models.hub import BASE
from quatrain.models.io import model_folder
from quatrain.models.transformer.stack import Block, Model
from quatrain.planning.counts import training_flops_per_token
from quatrain.planning.machine import choose_device
from quatrain.planning.training_memory import step_activations
from quatrain.runs.job import TrainingData, TrainingJob
from quatrain.runs.job_checks import check_job
from quatrain.runs.material import base_name_of, model_folder_of, write_mixture, write_model
from quatrain.runs.settings import to_dict
from quatrain.runs.stage import StageContext, StageResult
from quatrain.tokenizers.tokenizer import Tokenizer
from quatrain.training import checkpoints
from quatrain.training.distributed import ParallelStrategy, make_parallel
from quatrain.training.streams import ExampleStream, PackedStream
from quatrain.training.trainer import Hooks, Trainer, TrainResult

PREVIEW_CHARACTERS = 160
"""Most characters of a sample that are shown during training."""


def learn(learning: TrainingJob, context: StageContext, *, check: bool = True) -> tuple[TrainResult, StageResult]:
    """Trains a job and writes `model/`. An adapter is written to `adapter/` and merged at the end.

    With `check` the job is checked as `quatrain check` does, without measured steps.
    """
    model, tokenizer = learning.model, learning.tokenizer
    if learning.adapter is not None and model_folder_of(context) is None:
        raise InputError(
            f"{context.name}: adapter: there is no model that has learned; put a pretrain stage before it, or set "
            "model.folder. A model with random weights must be trained in full: leave the adapter out."
        )
    if check and context.is_main:
        check_job(learning, context)
    save, load = attach(learning, context)
    before, merges = None, True
    if learning.compare and learning.validate is not None:
        before = learning.validate(model).get("validation_loss")
    with constraints(learning):
        trained, result = train(learning, context, save=save, load=load)
    if learning.adapter is not None and not learning.adapters:
        save_adapter(model, context.stage_folder / "adapter", base_model=base_name_of(context))
        tokenizer.save(context.stage_folder / "adapter")
        merges = unmergeable_reason(model) is None
        if merges:
            merge_adapters(model)
        methods.dequantize(model)
    folder = context.model_folder
    if learning.adapters:
        result.model_bytes = write_mixture(model, tokenizer, folder)
    elif merges:
        result.model_bytes = write_model(model, tokenizer, folder)
    else:
        # The adapter is no weight of the model: the folder is one of an adapter, with its base in it.
        shutil.rmtree(folder, ignore_errors=True)
        with adapters_disabled(model):
            result.model_bytes = write_model(model, tokenizer, folder / BASE)
        save_adapter(model.requires_grad_(False), folder, base_model=str((folder / BASE).resolve()))
        tokenizer.save(folder)
    result.notes += learning.notes
    if "validation_loss" in trained.metrics:
        result.validation_loss = trained.metrics["validation_loss"]
        if before is not None:
            result.extra["validation_loss_before"] = before
            result.notes.append(f"loss on the text held out: {before:.3f} before, {result.validation_loss:.3f} after")
    return trained, result


@contextmanager
def constraints(learning: TrainingJob) -> Iterator[None]:
    """Puts the constraints of a training on the model: rounding (`quantize_aware`), and zeros that stay zeros."""
    settings, model = learning.settings, learning.model
    with ExitStack() as stack:
        if settings.quantize_aware is not None:
            options = {} if settings.quantize_group is None else {"group": settings.quantize_group}
            names = stack.enter_context(quantization_aware(model, settings.quantize_aware, **options))
            learning.notes.append(f"{len(names)} linear layers were trained as {settings.quantize_aware} rounds them")
        if learning.masks:
            stack.enter_context(sparse(model, learning.masks))
        yield


def attach(learning: TrainingJob, context: StageContext) -> tuple[Callable[[Path], None], Callable[[Path], None]]:
    """Adds the stage's adapter to the model. Returns the functions that write and read the weights of a checkpoint."""
    model, adapter = learning.model, learning.adapter
    save: Callable[[Path], Any]
    load: Callable[[Path], Any]
    if adapter is None:
        check_learns_whole(model, context.name)
        save, load = partial(model_folder.save, model), partial(load_weights, model)
    else:
        adapt(model, adapter, learning.tokenizer, seed=context.seed, adapters=learning.adapters)
        trainable, total, percent = count_trainable_parameters(model)
        context.reporter.info(f"{trainable:,} of {total:,} parameters train ({percent:.2f} %).")
        save, load = partial(state.save, model), partial(state.load, model)
    if learning.trainee is None:
        return save, load
    return _both(save, learning.trainee.save_value), _both(load, learning.trainee.load_value)


def _both(first: Callable[[Path], Any], second: Callable[[Path], Any]) -> Callable[[Path], None]:
    def call(folder: Path) -> None:
        first(folder)
        second(folder)

    return call


def check_learns_whole(model: Model, name: str) -> None:
    """Raises InputError for a model that is held in few bits, most of which could not learn."""
    if not (layers := [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]):
        return
    trainable, total, percent = count_trainable_parameters(model)
    raise InputError(
        f"{name}: every weight is to learn, but the model is held in {layers[0].method}: of its {total:,} weights only "
        f"{trainable:,} ({percent:.0f} %) could, the linear layers not. Give the stage an adapter, which learns beside "
        "them (adapter = { rank = 16 }), or start from the float model."
    )


def adapt(
    model: Model, adapter: AdapterSettings, tokenizer: Tokenizer, *, seed: int = 0, adapters: Sequence[str] = ()
) -> None:
    """Freezes a model but for an adapter that is put on it, or several with the names `adapters`.

    Raises InputError where it cannot be put there, or could not be written for PEFT.
    """
    if model.added_token_ids and adapter.method in PROMPT_METHODS:
        shown = ", ".join(str(tokenizer.id_to_token(token)) for token in model.added_token_ids)
        raise InputError(
            f"adapter.method: {adapter.method} leaves the embedding as it is, and the new tokens {shown} could never "
            "learn; take another method in a stage before, or leave the tokens out."
        )
    learned = set(model.added_token_ids)
    if adapter.learns_special_tokens(model.config.head):
        learned |= tokenizer.special_ids
    if adapters:
        AdapterSet.create(model, adapters, adapter, seed=seed, tokenizer=tokenizer, ids=sorted(learned))
        return
    apply_adapter(model, adapter, seed=seed, tokenizer=tokenizer)
    layers = file_layers(model.config)
    check_writable(layers, group(layers, dict(adapter_layers(model))))
    train_tokens(model, sorted(learned))


def load_weights(model: Model, checkpoint: Path) -> None:
    """Loads the weights of a checkpoint into the model."""
    model.load_state_dict(model_folder.load(checkpoint, head=model.config.head).state_dict())


def train(
    learning: TrainingJob, context: StageContext, *, save: Callable[[Path], None], load: Callable[[Path], None]
) -> tuple[TrainResult, StageResult]:
    """Trains with progress, `metrics.jsonl` and checkpoints, from the newest whole checkpoint if there is one.

    `save` and `load` write and read the weights of a checkpoint.
    """
    model, steps, settings = learning.model, learning.steps, learning.settings
    device = choose_device(settings.device)
    if context.processes > 1 and context.is_main:
        context.announce()
    parallel = make_parallel(settings.parallel, device) if context.processes > 1 else ParallelStrategy()
    learning.trained.to(device)
    newest = checkpoints.newest_intact(context.checkpoints, context.reporter.warn)
    resume_step = int(newest.name.removeprefix("step-")) if newest else 0

    def activations(shape: tuple[int, ...], precision: str) -> dict[str, int]:
        return step_activations(
            model.config, settings, shape, precision=precision, adapter=learning.adapter, device=device
        )

    with (
        metrics_log(context, resume_step) as log,
        trackers(context, resume_step) as tracked,
        context.reporter.task(context.name, total=steps) as task,
    ):
        if learning.watch is not None and resume_step:
            entries = read_metrics(context.metrics_path)
            learning.watch.replay(entry for entry in entries if entry.get("stage") == context.name)
        hooks = Hooks(
            save=save,
            load=load,
            validate=learning.validate,
            sample=learning.sample,
            log=log_to(log, tracked, context.reporter, learning.watch),
            progress=task.update,
            resumed=lambda step: context.reporter.info(f"{context.name} resumes at step {step:,} of {steps:,}."),
            warn=context.reporter.warn,
            describe=learning.describe or partial(decoded, learning.tokenizer),
            estimate=activations if model.is_planned else None,
        )
        trainer = Trainer(
            learning.trained,
            learning.objective,
            learning.stream,
            learning.settings,
            steps=steps,
            seed=context.seed,
            folder=context.checkpoints,
            hooks=hooks,
            parallel=parallel,
        )
        began = time.perf_counter()
        result = trainer.train()
        elapsed = time.perf_counter() - began
    trainable, total, _ = count_trainable_parameters(model)
    flops = training_flops_per_token(model.config, learning.length) * result.size
    return result, StageResult(
        tokens=result.size,
        flops=flops,
        parameters=total,
        trainable_parameters=trainable,
        extra={
            "training_seconds": result.seconds,
            "elapsed_seconds": elapsed,
            "loss": result.loss,
            "precision": result.precision,
            "steps": result.steps,
            "memory": result.memory,
            "metrics": result.metrics,
        }
        | ({} if learning.watch is None else {"alarms": [alarm.as_dict() for alarm in learning.watch.alarms]}),
    )


def metrics_log(context: StageContext, resume_step: int) -> AbstractContextManager[MetricsLog | None]:
    """The run's `metrics.jsonl`, which only the first process writes."""
    if not context.is_main:
        return nullcontext()
    return MetricsLog(context.metrics_path, context.name, resume_step=resume_step)


def trackers(context: StageContext, resume_step: int) -> Trackers:
    """The recipe's trackers, in the first process only."""
    recipe = context.recipe
    return Trackers(
        recipe.tracking if context.is_main else (),
        context.folder,
        run=recipe.name,
        stage=context.name,
        config=to_dict(recipe),
        resume_step=resume_step,
        warn=context.reporter.warn,
    )


def log_to(
    log: MetricsLog | None, tracked: Trackers, reporter: Reporter, watch: Watch | None = None
) -> Callable[[dict[str, Any]], None]:
    """A function that writes the trainer's entries to `metrics.jsonl` and the trackers, and shows the first sample.

    An entry that raises alarms of the `watch` gets them as `alarms`, and they are shown as warnings.
    """

    def write(entry: dict[str, Any]) -> None:
        if watch is not None and (alarms := watch.update(entry)):
            entry = entry | {"alarms": [alarm.as_dict() for alarm in alarms]}
            for alarm in alarms:
                reporter.warn(f"step {alarm.step:,}: {alarm.text}")
        if entry.get("samples"):
            first = entry["samples"][0]
            preview = " ".join(f"{first['prompt']} → {first['output']}".split())
            if len(preview) > PREVIEW_CHARACTERS:
                preview = preview[:PREVIEW_CHARACTERS] + " …"
            reporter.info(f"step {entry['step']:,}: {preview}")
        if log is not None:
            log.write(**entry)
            tracked.log(entry)

    return write


def decoded(tokenizer: Tokenizer, batch: Any) -> list[str]:
    """The rows of a batch as text, with special tokens and padding."""
    return [tokenizer.decode(row, skip_special_tokens=False) for row in batch.input_ids.flatten(0, -2).tolist()]


def example_stream(
    settings: Any, context: StageContext, examples: Sequence[Any], *, length: int = 0, pad_id: int = 0
) -> tuple[ExampleStream | PackedStream, int]:
    """Shuffled batches of examples, and the number of optimizer steps. `length` is that of a packed row."""
    train = settings.train
    tokens = max(1, train.batch_tokens // train.accumulation)
    stream: ExampleStream | PackedStream
    if train.packing:
        rows = max(1, tokens // length)
        stream = PackedStream(examples, length=length, rows=rows, pad_id=pad_id, seed=context.seed)
    else:
        stream = ExampleStream(examples, batch_tokens=tokens, seed=context.seed)
    return stream, train.steps or stream.steps(train.epochs or 1, train.accumulation)


def training_job(
    settings: Any, model: Model, tokenizer: Tokenizer, objective: Any, data: TrainingData, *, limit: int, **more: Any
) -> TrainingJob:
    """The job of a stage that trains on examples of at most `limit` tokens; `more` are further fields of the job."""
    return TrainingJob(
        model,
        tokenizer,
        objective,
        data.stream,
        settings.train,
        data.steps,
        length=mean_length(data.examples),
        limit=limit,
        examples=data.examples,
        held_out=data.held_out,
        adapter=settings.adapter,
        **more,
    )


def longest(model: Model, settings: Any, usual: int) -> int:
    """The longest row that a stage learns from: its `context`, or what is usual, and no more than a soft prompt leaves.

    Raises InputError where that is nothing.
    """
    limit: int = settings.context or usual
    slots = 0 if settings.adapter is None else settings.adapter.slots
    if not slots or not model.config.has_position_limit:
        return limit
    room = model.config.context_length - slots
    if room < 2:
        raise InputError(
            f"adapter.num_virtual_tokens: {slots} slots; the model reads {model.config.context_length} tokens, "
            "and a text has to fit behind them."
        )
    return min(limit, room)


def mean_length(examples: Sequence[Any]) -> int:
    """The mean length of an example, in tokens."""
    return max(1, round(sum(map(len, examples)) / len(examples)))


def with_dropout(model: Model, dropout: float) -> Model:
    """The same model with this dropout probability in training."""
    model.config = model.config.replace(dropout=dropout)
    for layer in model.modules():
        if isinstance(layer, Block):
            layer.dropout = dropout
    return model
