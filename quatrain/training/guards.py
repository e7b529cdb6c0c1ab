"""Guards of a training run: detect NaN, infinity, loss spikes and weights that do not learn, and save bad batches."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.core.atomic import atomic_write, write_json
from quatrain.core.errors import QuatrainError
from quatrain.core.wording import format_names
from quatrain.data.batches import Batch
from quatrain.training.optimizers import dense_part
from quatrain.training.settings import TrainSettings

ENOUGH = 10
"""Losses needed before a spike can be distinguished from the initial decrease."""

MOST_SKIPPED = 10
"""Consecutive bad steps after which the run stops even with `on_bad_step = "skip"`."""


class Guard:
    """Judges each step by its loss and gradient norm, and counts skipped steps."""

    def __init__(self, settings: TrainSettings):
        self.settings = settings
        self.skipped = self.in_a_row = 0

    def judge(self, loss: float, norm: float, recent: Sequence[float]) -> str | None:
        """Why a step is bad, given the recent losses; None for a good step."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"the loss is {loss} and the gradient norm is {norm}"
        factor = self.settings.loss_spike_factor
        if factor and len(recent) >= ENOUGH and (usual := median(recent)) > 0 and loss > factor * usual:
            return f"the loss of {loss:.4g} is {loss / usual:.1f} times the running median of {usual:.4g}"
        return None

    def skip(self) -> bool:
        """Count a bad step. Returns whether the run may continue without it."""
        self.skipped += 1
        self.in_a_row += 1
        return self.settings.on_bad_step == "skip" and self.in_a_row < MOST_SKIPPED

    def passed(self) -> None:
        self.in_a_row = 0

    def error(self, step: int, reason: str, where: str, kept: Path | None) -> QuatrainError:
        """The error for a run that stops at a bad step."""
        many = f" It is the {self.in_a_row}th consecutive bad step." if self.in_a_row >= MOST_SKIPPED else ""
        look = f" The batch is saved in {kept}." if kept is not None else ""
        settings = self.settings
        calmer = "" if settings.on_bad_step == "skip" else ', or set train.on_bad_step = "skip" to skip such steps'
        remedy = (
            f"Lower train.learning_rate (now {settings.learning_rate}), raise train.warmup_steps "
            f'(now {settings.warmup_steps}), set train.precision = "float32"{calmer}; '
            "the next run resumes from the last checkpoint."
        )
        return QuatrainError(f"Step {step}: {reason}.{where}{many} Training cannot continue.{look} {remedy}")

    def state(self) -> dict[str, int]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state(self, state: dict[str, int]) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


def where_from(
    model: nn.Module, masters: Mapping[str, nn.Parameter], batches: Sequence[Any], losses: Sequence[float],
    again: Callable[[Any], object],
) -> str:  # fmt: skip
    """Where NaN or infinity appears first: in the weights, in a module of the forward pass, or in the gradients.

    `losses` are the sums of the micro-batches; `again(batch)` repeats a forward pass.
    """
    wrong = [name for name, parameter in model.named_parameters() if not _finite(parameter)]
    if wrong:
        return f" Weights already contain NaN or inf: {format_names(wrong, 5)}."
    bad = next((number for number, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if bad is not None:
        place = f" Micro-batch {bad + 1} of {len(losses)}" if len(losses) > 1 else " The forward pass"
        with _first_wrong(model) as bad_modules, torch.no_grad():
            again(batches[bad])
        return f"{place} first gives NaN or inf in {bad_modules[0]}." if bad_modules else f"{place} gives NaN or inf."
    wrong = [
        name for name, master in masters.items() if master.grad is not None and not _finite(dense_part(master.grad))
    ]
    return f" The loss is finite; these gradients contain NaN or inf: {format_names(wrong, 5)}." if wrong else ""


def largest_of(losses: Sequence[float]) -> str:
    """Which micro-batch has the largest loss, if there are several."""
    if len(losses) < 2:
        return ""
    worst = max(range(len(losses)), key=lambda number: losses[number])
    return f" Micro-batch {worst + 1} of {len(losses)} has the largest loss."


def save_step(folder: Path, batches: Sequence[Batch], about: dict[str, Any]) -> Path:
    """Write the micro-batches of a step to `batch.safetensors` (tensors named `0.input_ids`), and `about` to JSON.

    NaN and infinity become text in `about.json`.
    """
    from safetensors.torch import save

    tensors = {
        f"{number}.{name}": value.detach().cpu().contiguous().clone()
        for number, batch in enumerate(batches)
        for name, value in batch.tensors()
    }
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "batch.safetensors", "wb") as file:
        file.write(save(tensors))
    write_json(folder / "about.json", _as_json(about))
    return folder


class GradientWatch:
    """Finds trainable tensors that get no gradient or do not change in the first three steps of a run.

    A fresh model's untied head starts at zero, and so do the projections that write to the residual stream: step by
    step the gradient reaches the head, these, and what is before them. The encoder of an encoder-decoder has a fourth
    step, as the output projections of cross-attention are before its own.
    """

    def __init__(self, masters: Mapping[str, nn.Parameter]):
        self.masters = masters
        self._begin = {name: _mark(master) for name, master in masters.items()}
        self._touched: set[str] = set()
        self._touched_before: set[str] = set()
        """What had a gradient before the last step: one step may change nothing, at a learning rate of nearly zero."""
        self._steps = 0

    @property
    def done(self) -> bool:
        """Whether all steps were checked."""
        return self._steps >= 4

    def check(self) -> None:
        """Check the gradients of a step. Raises QuatrainError if no tensor has a gradient."""
        having = {name for name, master in self.masters.items() if master.grad is not None}
        if not having:
            raise QuatrainError(
                f"Step {self._steps + 1}: none of the {len(self.masters)} trainable tensors has a gradient, so nothing "
                "can be learned. The loss does not depend on them: check the head and which weights are frozen."
            )
        norms = torch._foreach_norm([dense_part(self.masters[name].grad) for name in sorted(having)])
        self._touched_before = set(self._touched)
        self._touched |= {
            name for name, norm in zip(sorted(having), norms, strict=True) if norm.isnan() or float(norm) > 0
        }

    def report(self) -> str | None:
        """A message about tensors that do not learn, after the third step (encoders: the fourth); otherwise None."""
        self._steps += 1
        if self._steps not in (3, 4):
            return None
        asked = {name: each for name, each in self.masters.items() if ("encoder." in name) == (self._steps == 4)}
        without = [name for name in asked if name not in self._touched]
        still = [
            name for name, each in asked.items() if name in self._touched_before and _mark(each) == self._begin[name]
        ]
        parts = []
        if without:
            parts.append(f"no gradient reaches {format_names(without, 5)}")
        if still:
            parts.append(f"the optimizer does not change {format_names(still, 5)}")
        if not parts:
            return None
        return (
            f"After {self._steps} steps {'; '.join(parts)}. These tensors are trainable but do not learn: freeze them, "
            "or find out why the loss does not depend on them."
        )


def _mark(tensor: Tensor) -> tuple[float, float]:
    """A checksum of a tensor: two sums that change when any element changes."""
    exact = torch.float32 if tensor.device.type == "mps" else torch.float64
    values = tensor.detach()
    return float(values.sum(dtype=exact)), float(torch.linalg.vector_norm(values, dtype=exact))


@contextmanager
def _first_wrong(model: nn.Module) -> Iterator[list[str]]:
    """Collect the names of leaf modules whose output is not finite, in the order of execution."""
    bad_modules: list[str] = []

    def make_hook(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, out: Any) -> None:
            if isinstance(out, Tensor) and not _finite(out):
                bad_modules.append(name)

        return hook

    handles = [
        module.register_forward_hook(make_hook(name))
        for name, module in model.named_modules()
        if name and not any(True for _ in module.children())
    ]
    try:
        yield bad_modules
    finally:
        for handle in handles:
            handle.remove()


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.detach().isfinite().all())


def _as_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(part) for part in value]
    return value
