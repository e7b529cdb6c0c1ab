"""Estimates the memory of a training step from a model's configuration alone; no weight is read.

The training code itself (modules, forward and backward passes, precision, losses) runs some steps on PyTorch's fake
tensors, which have a shape and no data, while the bytes of all live tensors are added up. For a CPU the tensors are
placed on a simulated glibc heap, whose holes take a tenth of the memory or more.
"""

from __future__ import annotations

import math
import weakref
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from quatrain.adapters.apply import apply_adapter, count_trainable_parameters
from quatrain.adapters.settings import AdapterSettings
from quatrain.adapters.trainable_tokens import train_tokens
from quatrain.compression import methods
from quatrain.compression.layer import QuantizedLinear, matmul_in_strips
from quatrain.core.allocation import keeps
from quatrain.core.errors import InputError, QuatrainError
from quatrain.models.transformer.config import LANGUAGE_HEADS, ModelConfig
from quatrain.models.transformer.stack import Model
from quatrain.planning.limits import estimating, least_parameters
from quatrain.training import adamw8bit, memory
from quatrain.training.acceleration import activation_checkpointing
from quatrain.training.chunked_loss import chunk_count, chunking, summed_language_loss
from quatrain.training.optimizers import Muon, make_optimizers
from quatrain.training.paged import Paged
from quatrain.training.precision import DTYPES, Precision
from quatrain.training.settings import TrainSettings

MOST_LAYERS = 500
"""Most layers that are estimated; the largest published models have about 130."""

MOST_CHUNKS, MOST_PRODUCTS = 2_000, 50_000
"""Most chunks of a loss that are simulated, and matrix products in them: they take up to a minute. 500,000 tokens at
once with a vocabulary of 128,000 are within the limit."""

LARGEST_TENSOR = 2**60
"""Elements of the largest tensor; its bytes must fit in 64 bits."""

STEPS = 3
"""Simulated steps: by the third the heap has reached its size."""

HEAP_FACTOR = 1.1
"""Size of a real heap, which also holds other objects, relative to the simulated one: the mean over the cases of
`benchmarks/plan_memory.py`, which range from 0.99 to 1.26.
"""

TEMPORARIES = 10
"""Float32 tensors of one slice that a step of 8-bit AdamW holds at once."""


@dataclass(frozen=True)
class TrainingMemory:
    """Elements, trainable and total; bytes of each part at its own largest, and of the whole at its peak.

    Parts: `weights` (in the working precision, and float32 masters), `adapter`, `gradients`, `optimizer`, `activations`
    (saved by a forward pass, without logits), `logits`, and `workspace`: temporary tensors at the peak and, on a CPU,
    the holes of the heap. The parts are not largest at the same time: gradients grow while activations are freed.
    `host` are the bytes of paged optimizer states in RAM, which the peak does not include.
    """

    trainable: int
    total: int
    parts: dict[str, int]
    peak: int
    host: int = 0


def training_memory(
    config: ModelConfig,
    settings: TrainSettings,
    *,
    rows: int,
    length: int,
    precision: str,
    adapter: AdapterSettings | None = None,
    device: torch.device | str = "cpu",
    special: Sequence[int] = (),
    stored: str = "float32",
) -> TrainingMemory:
    """Estimates the memory of training a model of this shape with these settings, on micro-batches (rows, length).

    `precision` is float32, bfloat16 or float16, and `stored` the dtype of the model's files: frozen weights of the same
    dtype are in memory once. `special` are the tokens whose embedding rows train beside an adapter with
    `trainable_tokens` = "special": the embedding then has a gradient and optimizer states. The peak includes loading
    the model and converting its weights. Raises InputError for an adapter that does not fit the model.
    """
    device = torch.device(device)
    _check_countable(config, rows, length, device)
    with (
        estimating(),
        FakeTensorMode(allow_non_fake_inputs=True),
        _Live() as live,
        torch.random.fork_rng(devices=[]),
    ):
        model = _model(config, adapter, device, special)
        trainable, total, _ = count_trainable_parameters(model)
        adapter_elements = 0 if adapter is None else trainable
        live.peak = live.now
        weights = Precision(model, DTYPES[precision], exact=stored == precision)
        loading_peak = live.peak  # all weights as read, and the largest of them converted
        optimizers = make_optimizers(weights.masters, settings, dtype=DTYPES[precision])
        static = live.now
        ids = torch.zeros(rows, length, dtype=torch.long, device=device)
        saved, states = _SavedBytes(), list[Tensor]()
        with chunking(settings.chunked_loss), activation_checkpointing(model, settings.activation_checkpointing):
            if device.type == "cpu" and keeps():
                live.keep()
            live.peak = live.now
            for _ in range(STEPS):  # the optimizer's states exist from the second one on
                _step(model, weights, optimizers, settings, ids, saved, states)
        measured = memory.held(model, weights.masters, optimizers)
        weights.clear()
        del states
        optimizer_bytes = memory.states(optimizers)
        paged = sum(memory.states_of(each) for each in optimizers if isinstance(each, Paged))
    share = DTYPES[precision].itemsize + 4 if precision != "float32" else 4
    parts = {
        "weights": static - adapter_elements * share,
        "adapter": adapter_elements * share,
        "gradients": measured["gradients"],
        "optimizer": optimizer_bytes,
        "activations": saved.activations,
        "logits": saved.logits,
    }
    parts["workspace"] = max(0, live.peak - sum(parts.values()))
    return TrainingMemory(trainable, total, parts, max(live.peak, loading_peak), paged)


def step_activations(
    config: ModelConfig, settings: TrainSettings, shape: tuple[int, ...], *, precision: str,
    adapter: AdapterSettings | None = None, device: torch.device | str = "cpu",
) -> dict[str, int]:  # fmt: skip
    """Bytes of `activations` and `logits` of a forward pass over ids of `shape`, for the message of a step that did not
    fit in memory. Empty if they cannot be estimated either.
    """
    try:
        memory = training_memory(
            config, settings, rows=math.prod(shape[:-1]), length=shape[-1], precision=precision, adapter=adapter,
            device=device,
        )  # fmt: skip
    except (QuatrainError, MemoryError, RuntimeError):
        return {}
    return {part: memory.parts[part] for part in ("activations", "logits")}


def _check_countable(config: ModelConfig, rows: int, length: int, device: torch.device) -> None:
    """Refuse shapes whose simulation would take long, or whose tensors have sizes beyond 64 bits."""
    if config.num_hidden_layers > MOST_LAYERS:
        raise InputError(
            f"num_hidden_layers: {config.num_hidden_layers:,}; at most {MOST_LAYERS:,} layers are "
            "simulated: plan a model of fewer layers, and multiply"
        )
    wide = max(config.vocab_size, config.intermediate_size, config.num_attention_heads * max(config.head_dim, length))
    if max(rows * length, least_parameters(config)) * wide >= LARGEST_TENSOR:
        raise InputError(
            f"{rows:,} rows of {length:,} tokens for a model with at least {least_parameters(config):,} weights: too "
            "large to simulate; make train.batch_tokens, context or the model smaller"
        )
    chunks, products = chunk_count(rows * length, config.vocab_size, device)
    if config.head in LANGUAGE_HEADS and (chunks > MOST_CHUNKS or products > MOST_PRODUCTS):
        raise InputError(
            f"{rows:,} rows of {length:,} tokens, each with {config.vocab_size:,} logits: too large to simulate; "
            "make train.batch_tokens smaller, or train.accumulation larger"
        )


def _model(
    config: ModelConfig, adapter: AdapterSettings | None, device: torch.device, special: Sequence[int] = ()
) -> Model:
    """The model in training mode, with fake tensors."""
    with device:
        model = Model(config)
        if adapter is not None:
            if adapter.quantize_base != "float":
                methods.loading_hook(adapter.quantize_base)(model, {})
                methods.finish_loading(model)
                for layer in model.modules():
                    if isinstance(layer, QuantizedLinear):  # do not run the dequantization
                        layer.dequantized_weight = partial(_empty_weight, layer)  # type: ignore[method-assign]
                        layer.matmul = partial(_empty_product, layer)  # type: ignore[method-assign]
            apply_adapter(model, adapter)
            if adapter.learns_special_tokens(config.head):
                train_tokens(model, special or (0,))
    return model.train()


def _empty_weight(layer: QuantizedLinear, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(layer.out_features, layer.in_features, dtype=dtype, device=next(layer.buffers()).device)


def _empty_product(layer: QuantizedLinear, x: Tensor) -> Tensor:
    in_features = layer.in_features
    return matmul_in_strips(x, layer.out_features, lambda start, stop: x.new_empty(stop - start, in_features))


@dataclass
class _SavedBytes:
    """Bytes that a forward pass saves for the backward pass."""

    activations: int = 0
    logits: int = 0


def _step(
    model: Model, weights: Precision, optimizers: list[torch.optim.Optimizer], settings: TrainSettings, ids: Tensor,
    saved_bytes: _SavedBytes, states: list[Tensor],
) -> None:  # fmt: skip
    """One step as the trainer takes it: micro-batches, float32 gradients, the optimizers."""
    weights.clear()
    for _ in range(min(2, settings.accumulation)):
        saved = memory.Saved(model)
        with saved.measured(settings.activation_checkpointing):
            loss = _loss(model, ids)
        saved_bytes.activations, saved_bytes.logits = saved.activations, saved.logits
        loss.backward()
        del loss, saved
        weights.gather()
    for optimizer in optimizers:
        if isinstance(optimizer, Muon):
            optimizer.step()
        else:
            if not states and not isinstance(optimizer, Paged):
                states += [ids.new_empty(size, dtype=torch.uint8) for size in memory.state_sizes(optimizer)]
            temporary = ids.new_empty(_temporary(optimizer, ids.device), dtype=torch.uint8)
            del temporary
    weights.publish()


def _temporary(optimizer: torch.optim.Optimizer, device: torch.device) -> int:
    """Bytes that a step of AdamW needs temporarily: paged states on the device, slices in float32."""
    size = memory.states([optimizer]) if isinstance(optimizer, Paged) else 0
    if isinstance(optimizer, adamw8bit.AdamW8bit):
        largest = max((p.numel() for group in optimizer.param_groups for p in group["params"]), default=0)
        size += 4 * TEMPORARIES * min(adamw8bit.SLICE.get(device.type, adamw8bit.SLICE["else"]), largest)
    return size


def _loss(model: Model, ids: Tensor) -> Tensor:
    """A loss like the objectives' for this head, with every token as a target."""
    if model.config.head in LANGUAGE_HEADS:
        decoder_ids = None if model.encoder is None else ids
        return summed_language_loss(model, model.hidden_states(ids, decoder_input_ids=decoder_ids), ids)
    logits, _ = model(ids[:, None] if model.config.head == "multiple_choice" else ids)
    return sum((each.float().sum() for each in tree_iter(logits)), ids.new_zeros((), dtype=torch.float32))


class _Live(TorchDispatchMode):
    """Adds up the bytes of live storages, `now` and at the `peak`, and answers operations that depend on data.

    From `keep` on, new storages go to a heap that keeps freed memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.heap: Heap | None = None
        self._fixed = 0
        self._known: dict[int, tuple[int, int | None]] = {}

    def keep(self) -> None:
        """From now on freed memory stays with the process."""
        self.heap, self._fixed = Heap(), self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return False if args[0].dtype == torch.bool else 1 if not args[0].is_floating_point() else 1.0
        if func is torch.ops.aten.nonzero.default:  # all of them
            result = torch.empty(args[0].numel(), args[0].dim(), dtype=torch.long, device=args[0].device)
        else:
            result = func(*args, **(kwargs or {}))
        self._note(each.untyped_storage() for each in tree_iter(result) if isinstance(each, Tensor))
        return result

    def _note(self, storages: Iterable[Any]) -> None:
        for storage in storages:
            if id(storage) not in self._known:
                size = storage.nbytes()
                place = None if self.heap is None else self.heap.take(size)
                self._known[id(storage)] = size, place
                self.now += size
                used = self.now if self.heap is None else self._fixed + round(HEAP_FACTOR * self.heap.top)
                self.peak = max(self.peak, used)
                weakref.finalize(storage, self._gone, id(storage))

    def _gone(self, key: int) -> None:
        size, place = self._known.pop(key)
        self.now -= size
        if place is not None and self.heap is not None:
            self.heap.give(place)


class Heap:
    """A model of glibc's heap in a training on a CPU: takes the smallest free chunk that fits, else grows; adjacent
    free chunks merge. `top` is the largest extent so far. Sizes and places are in bytes.
    """

    ALIGNED, SMALL = 64, 640
    """Alignment of places; bytes of a tensor's Python object, storage and graph node beside its data."""
    SPARE = 96
    """Bytes beyond its size that an aligned chunk searches for: a hole of exactly its size is not used."""

    def __init__(self) -> None:
        self.top = self.end = 0
        self._last, self._spare = -1, 0
        self._taken: dict[int, int] = {}
        self._free: list[tuple[int, int]] = []
        self._starts: dict[int, int] = {}
        self._ends: dict[int, int] = {}

    def take(self, size: int) -> int:
        """Allocate at least `size` bytes and return their place."""
        self._small()
        return self._take(-(-(size + 16) // self.ALIGNED) * self.ALIGNED)

    def _small(self) -> None:
        """Allocates the objects of one tensor, in the place of a freed tensor's or the rest of the last large chunk."""
        if self._spare:
            self._spare -= 1
            return
        size = self.SMALL
        left = self._starts.get(self._last, 0)
        if left > size:
            self._drop(self._last)
            self._add(self._last + size, left - size)
            self._last += size
        else:
            self._take(size)

    def _take(self, size: int) -> int:
        number = bisect_left(self._free, (size + self.SPARE, -1))
        if number < len(self._free):
            free, place = self._free[number]
            self._drop(place)
            if free > size:
                self._add(place + size, free - size)
                self._last = place + size
        else:
            place, self.end = self.end, self.end + size
            self.top = max(self.top, self.end)
        self._taken[place] = size
        return place

    def give(self, place: int) -> None:
        """Free the chunk at a place."""
        size = self._taken.pop(place)
        self._spare += 1
        if (after := self._starts.get(place + size)) is not None:
            self._drop(place + size)
            size += after
        if (before := self._ends.get(place)) is not None:
            size += self._drop(before)
            place = before
        if place + size == self.end:
            self.end = place
        else:
            self._add(place, size)

    def _add(self, place: int, size: int) -> None:
        insort(self._free, (size, place))
        self._starts[place], self._ends[place + size] = size, place

    def _drop(self, place: int) -> int:
        size = self._starts.pop(place)
        del self._ends[place + size]
        del self._free[bisect_left(self._free, (size, place))]
        return size
