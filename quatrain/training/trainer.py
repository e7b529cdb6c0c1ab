"""The training loop of every objective: accumulation, precision, schedule, clipping, guards, logging, checkpoints.

The objective returns an undivided loss and its weight. The sums over micro-batches and processes are divided once, so
that 8, 4 and 1 micro-batches give the same step. A killed and restarted run continues bit for bit: the checkpoint holds
weights, optimizer states, the position in the data, the loss scale and the state of early stopping; random draws depend
on (seed, step) alone.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from quatrain.core.allocation import freed_memory_kept
from quatrain.core.atomic import disk_errors
from quatrain.core.errors import InputError, QuatrainError
from quatrain.training import checkpoints, guards, memory
from quatrain.training.acceleration import Compiled, activation_checkpointing
from quatrain.training.chunked_loss import chunking
from quatrain.training.distributed import ParallelStrategy, device_of
from quatrain.training.gradients import Gradients, Step
from quatrain.training.objectives import Objective
from quatrain.training.optimizers import (
    load_optimizer_tensors,
    make_optimizers,
    optimizer_tensors,
    set_learning_rate,
)
from quatrain.training.precision import DTYPES, LossScaler, Precision, dtype_name, working_dtype
from quatrain.training.schedules import learning_rate_ratio
from quatrain.training.settings import TrainSettings
from quatrain.training.stopping import Best
from quatrain.training.streams import BatchStream

CHECKPOINT_SECONDS = 60.0
"""Seconds between two checkpoints if `checkpoint_every` is 0."""


@dataclass
class Hooks:
    """Callbacks of the training loop. By default each does nothing.

    - `save(folder)` and `load(folder)` write and read the weights of a checkpoint.
    - `validate(model)` returns metrics such as `validation_loss`.
    - `sample(model)` returns samples of the model's output, as JSON.
    - `log(entry)` receives a dictionary every `log_every` steps; `progress(step, **metrics)` runs after each step.
    - `resumed(step)` reports the step from which a run resumes; `warn(text)` shows a warning.
    - `describe(batch)` returns a readable form of a bad batch, as JSON, to be saved beside it.
    - `estimate(shape, precision)` returns estimated bytes of activations by part, for out-of-memory errors.
    """

    save: Callable[[Path], None] | None = None
    load: Callable[[Path], None] | None = None
    validate: Callable[[Any], dict[str, float]] | None = None
    sample: Callable[[Any], list[dict[str, Any]]] | None = None
    log: Callable[[dict[str, Any]], None] = lambda entry: None
    progress: Callable[..., None] = lambda step, **metrics: None
    resumed: Callable[[int], None] = lambda step: None
    warn: Callable[[str], None] = lambda text: None
    describe: Callable[[Any], Any] | None = None
    estimate: Callable[[tuple[int, ...], str], dict[str, int]] | None = None


@dataclass
class TrainResult:
    """The outcome of a training run. `seconds` is the time of its steps alone, including steps before a restart.

    `size` counts the data read, in the unit of the batches (tokens for texts). `metrics` are those of the last
    validation or, with `keep = "best"`, of the best one, at step `best_step`. `skipped` counts skipped bad steps.
    `memory` holds measured bytes: weights, gradients, optimizer, activations, logits, and the `peak` of the process or
    the GPU.
    """

    steps: int
    size: int
    seconds: float
    loss: float
    metrics: dict[str, float] = field(default_factory=dict)
    precision: str = "float32"
    best_step: int | None = None
    skipped: int = 0
    memory: dict[str, int] = field(default_factory=dict)


class Trainer:
    """Trains the trainable parameters of a model with an objective, on a batch stream, for a number of steps.

    `folder` is for checkpoints; None disables them. `faults` is for the batches of bad steps, by default a folder next
    to `folder`. `seed` seeds dropout and the draws of the objective. The learning rate follows `settings.schedule` over
    `steps`. `parallel` is the strategy for several processes; they share the `settings.accumulation` micro-batches of a
    step.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        stream: BatchStream,
        settings: TrainSettings,
        *,
        steps: int,
        seed: int = 0,
        folder: Path | None = None,
        faults: Path | None = None,
        hooks: Hooks | None = None,
        parallel: ParallelStrategy | None = None,
    ):
        self.parallel = parallel or ParallelStrategy()
        self.model, self.settings = model, settings
        self.gradients = Gradients(model, objective, stream, settings, seed=seed, parallel=self.parallel)
        self.stream = self.gradients.stream
        self.steps, self.seed, self.folder, self.hooks = steps, seed, folder, hooks or Hooks()
        self.faults = faults or (folder.parent / "bad-steps" if folder is not None else None)
        self.device = device_of(model)
        # precision = "auto" is measured and may differ between machines: all processes use the first one's result.
        choice = list(DTYPES.values()).index(working_dtype(settings, self.device))
        self.dtype = list(DTYPES.values())[int(self.parallel.agree([choice])[0])]
        self.steps_done = self.size = 0
        self.seconds = 0.0
        self.metrics: dict[str, float] = {}
        self.guard, self.best = guards.Guard(settings), Best(settings)
        self.memory: dict[str, int] = {}
        self._best_weights: dict[str, Tensor] | None = None
        self.recent: deque[float] = deque(maxlen=50)

    def train(self) -> TrainResult:
        """Train to the last step, from the newest intact checkpoint if there is one. Ends in evaluation mode.

        Raises QuatrainError at a bad step (`guards.Guard`) or when memory runs out; the last checkpoint stays. Raises
        InputError if every learning rate is 0.
        """
        with self.ready():
            self._loop()
            self._put_best_weights()
        self._load_best()
        if self.memory:
            self.memory["peak"] = memory.peak(self.device)
        return TrainResult(
            self.steps_done,
            self.size,
            self.seconds,
            self._mean_loss(),
            self.best.metrics if self.keeps_best and self.best.step is not None else self.metrics,
            dtype_name(self.dtype),
            best_step=self.best.step,
            skipped=self.guard.skipped,
            memory=self.memory,
        )

    @contextmanager
    def ready(self) -> Iterator[None]:
        """A context for calls of `step`: converts weights, builds optimizers and restores the newest checkpoint.

        At its end the weights have their original dtypes, and the model is in evaluation mode.
        """
        if not any(self.settings.rates(self.steps)):
            raise InputError(
                f'train.schedule: "{self.settings.schedule}" ends at learning rate 0, and this training has only that '
                'step: nothing would be learned; take "constant", min_learning_rate_ratio above 0, or more steps '
                "or epochs"
            )
        state, tensors = self._find_checkpoint()
        self.weights = Precision(self.model, self.parallel.shard(self.gradients.full_pass, self.dtype))
        self.scaler = self._make_scaler(state)
        devices = [self.device] if self.device.type == "cuda" else []
        self.compiled = Compiled(self.model, self.settings.compile)
        if self.settings.paged_optimizer and self.device.type == "cpu":
            self.hooks.warn(
                "train.paged_optimizer changes nothing on a CPU: optimizer states are in host memory anyway."
            )
        try:
            self.gradients.start(self.weights, self.scaler, self.compiled, self.hooks.warn)
            self.optimizers = make_optimizers(self.weights.masters, self.settings, dtype=self.dtype)
            if state is not None:
                self._restore(state, tensors)
            with (
                torch.random.fork_rng(devices=devices),
                chunking(self.settings.chunked_loss),
                activation_checkpointing(self.model, self.settings.activation_checkpointing),
                freed_memory_kept(self.device.type == "cpu") as self.kept,
            ):
                self.model.train()
                yield
            # Not in `finally`: it waits for the other processes, which may have failed.
            self.parallel.close(self.model)
        finally:
            self.compiled.close()
            self.weights.close()
            self.model.eval()

    def _make_scaler(self, state: dict[str, Any] | None) -> LossScaler | None:
        if self.dtype != torch.float16:
            return None
        scaler = LossScaler(self.settings.batch_tokens // self.settings.accumulation)
        if state is not None and state["scaler"] is not None:
            scaler.load_state(state["scaler"])
        return scaler

    def _loop(self) -> None:
        saved_at = time.monotonic()
        while self.steps_done < self.steps and not self.best.exhausted:
            self.step()
            gained = False
            every = self.settings.evaluate_every
            last = self.steps_done == self.steps
            if self.hooks.validate is not None and (last or (every and self.steps_done % every == 0)):
                self.metrics = self._validate()
                gained = self.best.update(self.steps_done, self.metrics) and self.keeps_best
            if gained and not self.saves:
                self._best_weights = {name: p.detach().clone() for name, p in self.weights.masters.items()}
            every = self.settings.sample_every
            if self.hooks.sample is not None and every and self.steps_done % every == 0 and not last:
                self._sample()
            due = self._checkpoint_due(self.parallel.agree([time.monotonic() - saved_at])[0])
            if (due or (gained and self.saves)) and not last:
                self.save_checkpoint()
                saved_at = time.monotonic()

    def step(self) -> None:
        """One optimizer step, within `ready`: gradients, update, counters, progress and log.

        Raises QuatrainError at a bad step or when memory runs out.
        """
        started = time.perf_counter()
        try:
            step, rate, skipped = self._update()
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
            raise self._too_large(error) from error
        self.kept.after_step()
        self.steps_done += 1
        self.size += step.size
        self.seconds += time.perf_counter() - started
        if skipped is None:
            self.recent.append(step.loss)
        unit, speed = self.gradients.unit, self.size / self.seconds
        take = getattr(self.gradients.source, "take_metrics", None)
        made = {} if take is None else take()
        if not self.parallel.is_main:
            return
        self.hooks.progress(self.steps_done, loss=self._mean_loss(), **{f"{unit}_per_second": speed})
        if skipped is not None:
            self.hooks.warn(f"Step {self.steps_done} was skipped: {skipped}.")
            self.hooks.log({"step": self.steps_done, **made, "skipped": self.guard.skipped, unit: self.size})
        elif made or self.steps_done % self.settings.log_every == 0 or self.steps_done in (1, self.steps):
            scale = {} if self.scaler is None else {"loss_scale": self.scaler.factor}
            self.hooks.log(
                {
                    "step": self.steps_done,
                    "loss": step.loss,
                    **made,
                    **step.metrics,
                    "learning_rate": rate,
                    "grad_norm": step.norm,
                    unit: self.size,
                    f"{unit}_per_second": round(speed, 1),
                    "seconds": round(self.seconds, 3),
                    **scale,
                }
            )

    def _update(self) -> tuple[Step, float, str | None]:
        """Update the weights unless the step is bad. Returns the step, the learning rate, and the reason to skip it."""
        rate = self.settings.learning_rate * learning_rate_ratio(
            self.steps_done,
            steps=self.steps,
            schedule=self.settings.schedule,
            warmup_steps=self.settings.warmup_steps,
            min_ratio=self.settings.min_learning_rate_ratio,
            decay_ratio=self.settings.decay_ratio,
        )
        step = self.gradients.of(self.steps_done)
        if self.scaler is not None:
            self.scaler.advance(math.isfinite(step.norm))
            if math.isfinite(step.loss) and not math.isfinite(step.norm) and not self.scaler.exhausted:
                return step, rate, f"float16 overflow; the loss scale is now {self.scaler.factor:g}"
        reason = self.guard.judge(step.loss, step.norm, self.recent)
        if reason is not None:
            self._bad_step(reason, step, rate)
            return step, rate, reason
        set_learning_rate(self.optimizers, rate)
        for optimizer in self.optimizers:
            optimizer.step()
        # Fused optimizers change weights without counting it; engines notice changed weights by their versions.
        increment_version(list(self.weights.masters.values()))
        self.weights.publish()
        for module in self.model.modules():
            listener: Any = getattr(module, "after_optimizer_step", None)
            if listener is not None:
                listener(self.parallel.sum)
        self.guard.passed()
        self._measure()
        return step, rate, None

    def _measure(self) -> None:
        """Measure memory, and warn after the third step about weights that do not learn."""
        saved = self.gradients.saved
        if not self.memory:
            self.memory = memory.held(self.model, self.weights.masters, self.optimizers)
        if saved is not None:
            self.memory |= {"activations": saved.activations, "logits": saved.logits}
        self.memory["peak"] = memory.peak(self.device)
        if text := self.gradients.watched():
            self.hooks.warn(text)

    def _bad_step(self, reason: str, step: Step, rate: float) -> None:
        """Save the batch of a bad step for inspection. Raises QuatrainError if the run must stop."""
        losses = [float(loss) for loss in step.losses]
        with self.compiled.paused():
            where = (
                guards.largest_of(losses)
                if self.parallel.size > 1 or (math.isfinite(step.loss) and math.isfinite(step.norm))
                else guards.where_from(self.model, self.weights.masters, step.batches, losses, self.gradients.losses)
            )
        saved_to = None
        if self.faults is not None:
            about = {
                "step": self.steps_done + 1,
                "reason": reason + "." + where,
                "loss": step.loss,
                "grad_norm": step.norm,
                "losses": losses,
                "learning_rate": rate,
                "seed": self.seed,
                "stream": self.stream.state(),
                "text": None if self.hooks.describe is None else [self.hooks.describe(b) for b in step.batches],
            }
            rank = f"-process-{self.parallel.rank}" if self.parallel.size > 1 else ""
            saved_to = guards.save_step(self.faults / f"step-{self.steps_done + 1:08d}{rank}", step.batches, about)
        if not self.guard.skip():
            raise self.guard.error(self.steps_done + 1, reason, where, saved_to)

    def _too_large(self, error: BaseException) -> QuatrainError:
        precision = dtype_name(self.dtype)
        shape = self.gradients.shape or (1, self.settings.batch_tokens // self.settings.accumulation)
        adapted = any(not parameter.requires_grad for parameter in self.model.parameters())
        estimate = self.hooks.estimate
        activations = {} if estimate is None else estimate(shape, precision)
        parts = memory.expected(self.model, self.weights.masters, self.optimizers, activations)
        self.weights.clear()
        return memory.explain(
            error, parts, self.settings, step=self.steps_done + 1, shape=shape, precision=precision, adapted=adapted
        )

    def _mean_loss(self) -> float:
        return sum(self.recent) / len(self.recent) if self.recent else math.nan

    def _validate(self) -> dict[str, float]:
        with self._measuring():
            metrics = self.hooks.validate(self.model)  # type: ignore[misc]
        metrics = dict(zip(metrics, self.parallel.agree(list(metrics.values())), strict=True))
        if self.parallel.is_main:
            self.hooks.log({"step": self.steps_done, **metrics})
        return metrics

    def _sample(self) -> None:
        """Log samples of the model's output; the other processes wait."""
        with self._measuring():
            if self.parallel.is_main:
                self.hooks.log({"step": self.steps_done, "samples": self.hooks.sample(self.model)})  # type: ignore[misc]

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        """In this context the whole model is in evaluation mode and full precision."""
        self.model.eval()
        with self.weights.full(), torch.no_grad(), self.compiled.paused(), self.parallel.full_weights(self.model):
            yield
        self.model.train()

    @property
    def saves(self) -> bool:
        return self.folder is not None and self.hooks.save is not None

    @property
    def keeps_best(self) -> bool:
        """Whether the run ends with the weights of the best validation."""
        return self.settings.keep == "best"

    def _put_best_weights(self) -> None:
        """Restore the best weights from memory, where they are kept if there are no checkpoints."""
        if self._best_weights is not None and self.best.step != self.steps_done:
            with torch.no_grad():
                for name, master in self.weights.masters.items():
                    master.copy_(self._best_weights[name])
            self.weights.publish()
        self._best_weights = None

    def _checkpoint_due(self, seconds: float) -> bool:
        if not self.saves:
            return False
        every = self.settings.checkpoint_every
        return self.steps_done % every == 0 if every else seconds > CHECKPOINT_SECONDS

    def save_checkpoint(self) -> Path:
        """Write a checkpoint. Raises QuatrainError on a full disk; the previous checkpoint stays intact."""
        if self.folder is None or self.hooks.save is None:
            raise ValueError("a checkpoint needs a folder and a `save` hook")
        parallel = self.parallel
        tensors = optimizer_tensors(self.weights.masters, self.optimizers)
        weights = self.hooks.save
        if parallel.shards:
            weights, tensors = self._write_shards(self.folder, tensors), {}
        if parallel.is_main:
            with self.weights.full():
                checkpoints.write(
                    self.folder,
                    self.steps_done,
                    weights=weights,
                    state=self._state(),
                    tensors=tensors,
                    data=self._source_tensors(),
                    protect=self._protected(),
                )
        parallel.barrier()
        return checkpoints.place(self.folder, self.steps_done)

    def _protected(self) -> list[int]:
        """Steps whose checkpoints stay: that of the best weights, where they are kept."""
        best = self.best.step if self.keeps_best else None
        return [] if best is None else [best]

    def _source_tensors(self) -> dict[str, Tensor]:
        """The tensors of a stream that makes its data during the run."""
        tensors: Callable[[], dict[str, Tensor]] | None = getattr(self.gradients.source, "tensors", None)
        return {} if tensors is None else tensors()

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.steps_done,
            "size": self.size,
            "seconds": self.seconds,
            "stream": self.stream.state(),
            "seed": self.seed,
            "precision": dtype_name(self.dtype),
            "recent": list(self.recent),
            "steps": self.steps,
            "metrics": {name: value for name, value in self.metrics.items() if math.isfinite(value)},
            "guard": self.guard.state(),
            "best": self.best.state(),
            "scaler": None if self.scaler is None else self.scaler.state(),
            "sharded": self.parallel.shards,
            "accumulation": self.settings.accumulation,
        }

    def _find_checkpoint(self) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
        """Restores counters and unsharded weights from the newest whole checkpoint; returns its state and tensors."""
        if self.folder is None or self.hooks.load is None:
            return None, {}
        # The first process chooses, so that all processes resume from the same checkpoint and its files are read once.
        newest = checkpoints.newest_intact(self.folder, self.hooks.warn) if self.parallel.is_main else None
        step = -1 if newest is None else int(newest.name.removeprefix("step-"))
        step = int(self.parallel.agree([step])[0])
        if step < 0:
            return None, {}
        checkpoint = checkpoints.place(self.folder, step)
        state, tensors = checkpoints.read_state(checkpoint)
        if state["accumulation"] != self.settings.accumulation:
            raise QuatrainError(
                f"{checkpoint}: was written with {state['accumulation']} micro-batches per step, but this run has "
                f"{self.settings.accumulation}, so the position in the data would not match. Set "
                f"train.accumulation = {state['accumulation']} and start a number of processes that divides it, or "
                "start over with --restart."
            )
        if not state.get("sharded"):
            self.hooks.load(checkpoint)
        self.steps_done, self.size, self.seconds = state["step"], state["size"], state["seconds"]
        self.dtype = DTYPES[state["precision"]]
        self.recent.extend(state["recent"])
        self.stream.load_state(state["stream"])
        if hasattr(self.gradients.source, "load_tensors"):
            self.gradients.source.load_tensors(checkpoints.read_data(checkpoint))
        self.metrics = state["metrics"]
        self.guard.load_state(state["guard"])
        self.best.load_state(state["best"])
        if self.parallel.is_main:  # A kill may have come before the old ones were removed.
            checkpoints.prune(self.folder, protect=[step, *self._protected()])
        self.hooks.resumed(self.steps_done)
        return state, tensors

    def _restore(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Restores the optimizers' states, and weights that were written as shards."""
        if state.get("sharded"):
            self._load_shards(checkpoints.place(self.folder, self.steps_done))  # type: ignore[arg-type]
        else:
            load_optimizer_tensors(self.weights.masters, self.optimizers, tensors)

    def _load_best(self) -> None:
        """Loads the best weights from the checkpoint of their step, where checkpoints are written."""
        best = self.best.step
        if not (self.keeps_best and self.saves) or best in (None, self.steps_done) or self.hooks.load is None:
            return
        checkpoint = checkpoints.place(self.folder, best)  # type: ignore[arg-type]
        try:
            checkpoints.check(checkpoint)
        except QuatrainError as error:
            self.hooks.warn(f"{error} The last weights are kept instead of the best, of step {best}.")
            return
        if checkpoints.read_state(checkpoint)[0].get("sharded"):
            from quatrain.training.distributed import shards

            written = set(shards.names(checkpoint / shards.FOLDER))
            own = {name: parameter.detach() for name, parameter in self.model.named_parameters() if name in written}
            shards.load(own, checkpoint / shards.FOLDER)
        else:
            self.hooks.load(checkpoint)

    def _write_shards(self, folder: Path, tensors: dict[str, Tensor]) -> Callable[[Path], None]:
        """Every process writes its shards of weights and optimizer states.

        Returns a function that moves the shards into a checkpoint.
        """
        from quatrain.training.distributed import shards

        waiting = folder / ".shards"
        if self.parallel.is_main:
            with disk_errors(waiting):
                shutil.rmtree(waiting, ignore_errors=True)
                waiting.mkdir(parents=True)
        self.parallel.barrier()
        with disk_errors(waiting):
            shards.save({name: master.detach() for name, master in self.weights.masters.items()} | tensors, waiting)
        self.parallel.barrier()
        return lambda checkpoint: os.replace(waiting, checkpoint / shards.FOLDER)

    @torch.no_grad()
    def _load_shards(self, checkpoint: Path) -> None:
        """Reads weights and optimizer states from shards that any number of processes wrote."""
        from quatrain.training.distributed import shards

        masters = self.weights.masters
        loaded = dict[str, Tensor]()
        for name in shards.names(checkpoint / shards.FOLDER):
            owner, _, key = name.rpartition(":")
            loaded[name] = torch.zeros(()) if key == "step" else torch.zeros_like(masters[owner or name].detach())
        shards.load(loaded, checkpoint / shards.FOLDER)
        for name, master in masters.items():
            master.copy_(loaded[name])
        self.weights.publish()
        load_optimizer_tensors(masters, self.optimizers, {name: loaded[name] for name in loaded if ":" in name})
