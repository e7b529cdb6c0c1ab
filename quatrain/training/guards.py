"""Guards of a training run: steps that are no numbers or jump, weights that do not learn, named and kept."""

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
from quatrain.data.batches import Batch
from quatrain.training.settings import TrainSettings

ENOUGH = 10
"""Losses before a spike can be told from the fall of the beginning."""

MOST_SKIPPED = 10
"""Bad steps in a row after which skipping does not help."""


class Guard:
    """Judges each step by its loss and its gradient's norm, and counts the steps that were left out."""

    def __init__(self, settings: TrainSettings):
        self.settings = settings
        self.skipped = self.in_a_row = 0

    def judge(self, loss: float, norm: float, recent: Sequence[float]) -> str | None:
        """What is wrong with a step, given the losses of the last ones; None where nothing is."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return f"the loss is {loss} and the gradient's norm {norm}"
        factor = self.settings.loss_spike_factor
        if factor and len(recent) >= ENOUGH and (usual := median(recent)) > 0 and loss > factor * usual:
            return f"the loss of {loss:.4g} is {loss / usual:.1f} times the running median of {usual:.4g}"
        return None

    def skip(self) -> bool:
        """Takes note of a bad step; whether the run may go on without it."""
        self.skipped += 1
        self.in_a_row += 1
        return self.settings.on_bad_step == "skip" and self.in_a_row < MOST_SKIPPED

    def passed(self) -> None:
        """Takes note of a good step."""
        self.in_a_row = 0

    def error(self, step: int, reason: str, where: str, kept: Path | None) -> QuatrainError:
        """The message of a run that stops at a bad step."""
        many = f" It is the {self.in_a_row}th in a row that was left out." if self.in_a_row >= MOST_SKIPPED else ""
        look = f" The batch is kept in {kept}." if kept is not None else ""
        settings = self.settings
        calmer = "" if settings.on_bad_step == "skip" else ', or set train.on_bad_step = "skip" to leave such steps out'
        remedy = (
            f"Lower train.learning_rate (now {settings.learning_rate}), raise train.warmup_steps "
            f'(now {settings.warmup_steps}), set train.precision = "float32"{calmer}; '
            "the next run resumes from the last checkpoint."
        )
        return QuatrainError(f"Step {step}: {reason}.{where}{many} Nothing after this can be right.{look} {remedy}")

    def state(self) -> dict[str, int]:
        """Steps left out so far, and just now in a row."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state(self, state: dict[str, int]) -> None:
        """Goes on with these."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


def where_from(
    model: nn.Module, masters: Mapping[str, nn.Parameter], batches: Sequence[Any], losses: Sequence[float],
    again: Callable[[Any], object],
) -> str:  # fmt: skip
    """Where numbers stop being numbers: the weights, or the first module of a forward pass, or the gradients.

    `losses` are the sums of the micro-batches; `again(batch)` runs the forward pass of one.
    """
    wrong = [name for name, parameter in model.named_parameters() if not _finite(parameter)]
    if wrong:
        return f" Weights are no numbers already: {_listed(wrong)}."
    bad = next((number for number, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if bad is not None:
        place = f" Micro-batch {bad + 1} of {len(losses)}" if len(losses) > 1 else " The forward pass"
        with _first_wrong(model) as found, torch.no_grad():
            again(batches[bad])
        return f"{place} leaves the numbers first in {found[0]}." if found else f"{place} has it."
    wrong = [name for name, master in masters.items() if master.grad is not None and not _finite(master.grad)]
    return f" The loss is a number; gradients are not: {_listed(wrong)}." if wrong else ""


def largest_of(losses: Sequence[float]) -> str:
    """Which micro-batch has most of the loss, where there are several."""
    if len(losses) < 2:
        return ""
    worst = max(range(len(losses)), key=lambda number: losses[number])
    return f" Most of it is of micro-batch {worst + 1} of {len(losses)}."


def save_step(folder: Path, batches: Sequence[Batch], about: dict[str, Any]) -> Path:
    """Writes the micro-batches of a step (`batch.safetensors`, tensors named `0.input_ids`) and what is known of it.

    `about.json` holds `about`, in which numbers that are none become text.
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
    """Looks at the first two steps of a run: which tensors that should learn get no gradient, or do not change."""

    def __init__(self, masters: Mapping[str, nn.Parameter]):
        self.masters = masters
        self._begin = {name: _mark(master) for name, master in masters.items()}
        self._touched: set[str] = set()
        self._steps = 0

    @property
    def done(self) -> bool:
        """Whether both steps were looked at."""
        return self._steps >= 2

    def look(self) -> None:
        """After the gradients of a step are there. Raises QuatrainError where nothing at all has one."""
        having = {name for name, master in self.masters.items() if master.grad is not None}
        if not having:
            raise QuatrainError(
                f"Step {self._steps + 1}: none of the {len(self.masters)} trainable tensors has a gradient, so nothing "
                "can be learned. The objective's loss does not reach them: check the head and what is frozen."
            )
        norms = torch._foreach_norm([self.masters[name].grad for name in sorted(having)])  # type: ignore[misc]
        self._touched |= {
            name for name, norm in zip(sorted(having), norms, strict=True) if norm.isnan() or float(norm) > 0
        }

    def report(self) -> str | None:
        """After a step of the optimizer: at the second one, the tensors that do not learn; otherwise None."""
        self._steps += 1
        if self._steps != 2:
            return None
        without = [name for name in self.masters if name not in self._touched]
        still = [
            name
            for name, master in self.masters.items()
            if name in self._touched and _mark(master) == self._begin[name]
        ]
        parts = []
        if without:
            parts.append(f"no gradient reaches {_listed(without)}")
        if still:
            parts.append(f"a gradient but no change has {_listed(still)}")
        if not parts:
            return None
        return (
            f"After two steps {'; '.join(parts)}. These tensors are trainable and do not learn: freeze them, or look "
            "for what cuts them off from the loss."
        )


def _mark(tensor: Tensor) -> tuple[float, float]:
    """Two sums that change when any element does."""
    exact = torch.float32 if tensor.device.type == "mps" else torch.float64
    values = tensor.detach()
    return float(values.sum(dtype=exact)), float(torch.linalg.vector_norm(values, dtype=exact))


@contextmanager
def _first_wrong(model: nn.Module) -> Iterator[list[str]]:
    """Collects the names of modules without children whose output is not finite, in the order in which they run."""
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: Any, out: Any) -> None:
            if isinstance(out, Tensor) and not _finite(out):
                found.append(name)

        return hook

    handles = [
        module.register_forward_hook(look(name))
        for name, module in model.named_modules()
        if name and not any(True for _ in module.children())
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.detach().isfinite().all())


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _as_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(part) for part in value]
    return value
