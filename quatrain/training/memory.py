"""Memory of a training step by part: measured while it runs, and explained when a step does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from quatrain.core.errors import QuatrainError
from quatrain.core.process_memory import peak_memory
from quatrain.core.wording import format_bytes
from quatrain.planning.counts import state_bytes
from quatrain.training.acceleration import blocks
from quatrain.training.adamw8bit import AdamW8bit
from quatrain.training.optimizers import SGD, Muon, dense_part, local_shard
from quatrain.training.paged import Paged
from quatrain.training.settings import TrainSettings

_REFUSED = ("out of memory", "can't allocate memory", "not enough memory", "defaultcpuallocator", "bad_alloc")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception comes from the allocator of any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _REFUSED)


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, each storage counted once; of a sharded tensor this process's shard."""
    parts = (local_shard(tensor) for tensor in tensors)
    return sum({_identity(part): part.untyped_storage().nbytes() for part in parts}.values())


def _identity(tensor: Tensor) -> int:
    """Identifies the storage of a live tensor; fake tensors have no address."""
    return int(tensor.untyped_storage()._cdata)


class Saved:
    """Measures what a forward pass saves for the backward pass besides weights: activations and logits.

    Logits are tensors whose last dimension is the model's `output_size`; a model without that attribute has none.
    """

    def __init__(self, model: nn.Module):
        self._own = {_identity(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._blocks = blocks(model)
        self._outputs: int | None = getattr(model, "output_size", None)
        self.activations = self.logits = 0

    @contextmanager
    def measured(self, checkpointed: bool) -> Iterator[None]:
        """Measures a forward pass inside this context and keeps the maximum. `checkpointed` blocks save their input."""
        saved: dict[int, tuple[int, bool]] = {}

        def keep(tensor: Tensor) -> Tensor:
            if (place := _identity(tensor)) not in self._own:
                saved[place] = tensor.untyped_storage().nbytes(), tensor.shape[-1:] == (self._outputs,)
            return tensor

        def enter(module: nn.Module, given: tuple[Any, ...]) -> None:
            keep(given[0])

        handles = [block.register_forward_pre_hook(enter) for block in self._blocks] if checkpointed else []
        try:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                yield
        finally:
            for handle in handles:
                handle.remove()
        logits = sum(size for size, is_logits in saved.values() if is_logits)
        self.logits = max(self.logits, logits)
        self.activations = max(self.activations, sum(size for size, _ in saved.values()) - logits)


def held(model: nn.Module, masters: dict[str, nn.Parameter], optimizers: list[torch.optim.Optimizer]) -> dict[str, int]:
    """Bytes of weights (with float32 masters), gradients and optimizer states on the device at this moment."""
    weights = [*model.parameters(), *model.buffers(), *masters.values()]
    states = [
        value
        for optimizer in optimizers
        if not isinstance(optimizer, Paged)
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    owners = (*model.parameters(), *masters.values())
    gradients = [dense_part(tensor.grad) for tensor in owners if tensor.grad is not None]
    return {
        "weights": tensor_bytes(weights),
        "gradients": tensor_bytes(gradients),
        "optimizer": tensor_bytes(states),
    }


def peak(device: torch.device) -> int:
    """Peak bytes of the GPU's allocator, or of this process in RAM."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


def states_of(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of one optimizer's states, counted before they exist."""
    return sum(state_sizes(optimizer))


def states(optimizers: Iterable[torch.optim.Optimizer]) -> int:
    """Bytes of several optimizers' states on the device; of a paged one only the largest tensor's."""
    total = 0
    for optimizer in optimizers:
        sizes = state_sizes(optimizer)
        total += max(sizes, default=0) if isinstance(optimizer, Paged) else sum(sizes)
    return total


def state_sizes(optimizer: torch.optim.Optimizer) -> list[int]:
    """Bytes of an optimizer's states for each tensor."""
    if isinstance(optimizer, SGD):
        return [0 for group in optimizer.param_groups for _ in group["params"]]
    kind = "muon" if isinstance(optimizer, Muon) else "adamw8bit" if isinstance(optimizer, AdamW8bit) else "adamw"
    return [state_bytes(each.numel(), kind) for group in optimizer.param_groups for each in group["params"]]


def expected(
    model: nn.Module,
    masters: dict[str, nn.Parameter],
    optimizers: list[torch.optim.Optimizer],
    activations: dict[str, int],
) -> dict[str, int]:
    """Bytes by part that a step needs: weights and states measured, `activations` (and logits) as estimated."""
    trained = sum(master.numel() for master in masters.values())
    parts = held(model, masters, optimizers)
    parts["gradients"] = max(parts["gradients"], 4 * trained)
    if not parts["optimizer"]:
        parts["optimizer"] = states(optimizers)
    return parts | activations


def explain(
    error: BaseException, parts: dict[str, int], settings: TrainSettings, *, step: int, shape: tuple[int, ...],
    precision: str, adapted: bool,
) -> QuatrainError:  # fmt: skip
    """The error of a step that does not fit: all parts, the largest one, and one change that helps."""
    largest = max(parts, key=lambda part: parts[part])
    listed = ", ".join(f"{part} {format_bytes(size)}" for part, size in sorted(parts.items(), key=lambda kv: -kv[1]))
    remedy = _remedy(largest, settings, shape, precision, adapted)
    lines = str(error).strip().splitlines()
    problem = f" ({lines[0][:160]})" if lines else ""
    return QuatrainError(
        f"Step {step} needs more memory than there is{problem}. The largest part is the {largest}: "
        f"{format_bytes(parts[largest])} of about {format_bytes(sum(parts.values()))} ({listed}). {remedy} "
        "What was finished is kept."
    )


def _remedy(part: str, settings: TrainSettings, shape: tuple[int, ...], precision: str, adapted: bool) -> str:
    rows = shape[0] if shape else 1
    if part == "logits" and settings.chunked_loss is False:
        return 'Set train.chunked_loss = "auto": then the logits never exist all at once.'
    if part in ("logits", "activations"):
        if rows > 1:
            now = settings.accumulation
            return f"Set train.accumulation = {2 * now} (now {now}): half the rows at a time, and the same steps."
        if not settings.activation_checkpointing:
            return "Set train.activation_checkpointing = true: it takes a third more time, and a block at a time."
        if precision == "float32":
            return 'Set train.precision = "bfloat16": half the bytes of every activation.'
        return f"Rows of {shape[-1] if shape else '?'} tokens are too long here: choose a shorter context."
    if part == "optimizer" and settings.optimizer != "adamw8bit" and settings.parallel in ("auto", "ddp"):
        return 'Set train.optimizer = "adamw8bit": AdamW whose states take a quarter of the memory.'
    if part in ("optimizer", "gradients") and not adapted:
        return "Train an adapter, adapter = { rank = 8 }: few weights then have gradients and optimizer state."
    return "The weights alone are too many for this machine: choose a smaller model."
