"""What a training step holds in memory, from a model's configuration alone: no weight is read, no number computed.

The step is gone through with tensors that have a shape and no numbers (PyTorch's fake tensors), by the code that
trains: the same modules, passes, precision and losses. What lives at each moment is added up; on a CPU it is put in a
heap that is glibc's, whose holes are a tenth and more of the whole.
"""

from __future__ import annotations

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

from quatrain.adapters.apply import apply, trainable_report
from quatrain.adapters.settings import AdapterSettings
from quatrain.adapters.trainable_tokens import train_tokens
from quatrain.compression import methods
from quatrain.compression.layer import QuantizedLinear, in_strips
from quatrain.core.allocation import keeps
from quatrain.core.errors import InputError
from quatrain.models.transformer.config import LANGUAGE_HEADS, ModelConfig
from quatrain.models.transformer.stack import Model
from quatrain.planning.room import estimating, least_parameters
from quatrain.training import adamw8bit, memory
from quatrain.training.acceleration import activation_checkpointing
from quatrain.training.chunked_loss import chunking, summed_language_loss
from quatrain.training.optimizers import Muon, make_optimizers
from quatrain.training.paged import Paged
from quatrain.training.precision import DTYPES, Precision
from quatrain.training.settings import TrainSettings

MOST_LAYERS = 500
"""Layers of a model that is gone through; the largest published ones have some 130."""

LARGEST_TENSOR = 2**60
"""Elements; bytes are counted in 64 bits."""

STEPS = 3
"""Steps that are gone through: by the third what is kept fits what comes."""

BESIDE = 1.1
"""A heap beside what `Heap` finds for it: what is no tensor lies in its holes too, and keeps them from what would fit.
The mean of the cases of `benchmarks/plan_memory.py`, which are from 0.99 to 1.26.
"""

TEMPORARIES = 10
"""Float32 tensors of a slice that a step of AdamW in eight bits has at once."""


@dataclass(frozen=True)
class Forecast:
    """Elements that train and all of them; bytes by part, each where it is largest, and at the peak.

    Parts: `weights` (in the working precision, with what they are held in between), `adapter`, `gradients`,
    `optimizer`, `activations` (what a forward pass keeps, logits apart), `logits`, and `workspace`, what passes and the
    optimizer need beside these at the peak, and holes of the heap that a training on a CPU keeps. They need not be
    largest at one time: gradients grow as activations go.
    `host` is what paged states take in RAM, outside the peak.
    """

    trainable: int
    total: int
    parts: dict[str, int]
    peak: int
    host: int = 0


def forecast(
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
) -> Forecast:
    """The memory of training a model of this shape with these settings, on micro-batches (rows, length) of tokens.

    `precision` is float32, bfloat16 or float16, `stored` that of the model's files: frozen weights of the same are held
    once. `special` are the tokens whose embedding rows train beside an adapter with `trainable_tokens` = "special", if
    they are known: the embedding then has a gradient and optimizer states. The peak is at least that of
    reading the model and narrowing its weights. Raises InputError for an adapter that does not fit the model.
    """
    device = torch.device(device)
    # The generator of torch is as it was: nothing is drawn.
    _check_countable(config, rows, length)
    with (
        estimating(),
        FakeTensorMode(allow_non_fake_inputs=True),
        _Live() as live,
        torch.random.fork_rng(devices=[]),
    ):
        model = _model(config, adapter, device, special)
        trainable, total, _ = trainable_report(model)
        own = 0 if adapter is None else trainable
        live.peak = live.now
        weights = Precision(model, DTYPES[precision], exact=stored == precision)
        begun = live.peak  # with the weights as they were read, and the largest of them narrowed
        optimizers = make_optimizers(weights.masters, settings, dtype=DTYPES[precision])
        static = live.now
        ids = torch.zeros(rows, length, dtype=torch.long, device=device)
        found, states = _Step(), list[Tensor]()
        with chunking(settings.chunked_loss), activation_checkpointing(model, settings.activation_checkpointing):
            if device.type == "cpu" and keeps():
                live.keep()
            live.peak = live.now
            for _ in range(STEPS):  # the optimizer's states are there from the second one on
                _learn(model, weights, optimizers, settings, ids, found, states)
        held = memory.held(model, weights.masters, optimizers)
        weights.clear()
        del states
        taken = memory.states(optimizers)
        paged = sum(memory.states_of(each) for each in optimizers if isinstance(each, Paged))
    share = DTYPES[precision].itemsize + 4 if precision != "float32" else 4
    parts = {
        "weights": static - own * share,
        "adapter": own * share,
        "gradients": held["gradients"],
        "optimizer": taken,
        "activations": found.activations,
        "logits": found.logits,
    }
    parts["workspace"] = max(0, live.peak - sum(parts.values()))
    return Forecast(trainable, total, parts, max(live.peak, begun), paged)


def _check_countable(config: ModelConfig, rows: int, length: int) -> None:
    """Refuse shapes whose step would take long to go through, or whose tensors have sizes beyond 64 bits."""
    if config.num_hidden_layers > MOST_LAYERS:
        raise InputError(
            f"num_hidden_layers: {config.num_hidden_layers:,}; a step is gone through layer by layer, {MOST_LAYERS:,} "
            "at most: plan a model of fewer layers, and multiply"
        )
    wide = max(config.vocab_size, config.intermediate_size, config.num_attention_heads * max(config.head_dim, length))
    if max(rows * length, least_parameters(config)) * wide >= LARGEST_TENSOR:
        raise InputError(
            f"{rows:,} rows of {length:,} tokens for a model with at least {least_parameters(config):,} weights: too "
            "large to be reckoned; make train.batch_tokens, context or the model smaller"
        )


def _model(
    config: ModelConfig, adapter: AdapterSettings | None, device: torch.device, special: Sequence[int] = ()
) -> Model:
    """The network as it trains, of tensors without numbers."""
    with device:
        model = Model(config)
        if adapter is not None:
            if adapter.quantize_base != "float":
                methods.preparing(adapter.quantize_base)(model, {})
                methods.filled(model)
                for layer in model.modules():
                    if isinstance(layer, QuantizedLinear):  # of the part at a time that its weight is made of, nothing
                        layer.plain_weight = partial(_empty_weight, layer)  # type: ignore[method-assign]
                        layer.product = partial(_empty_product, layer)  # type: ignore[method-assign]
            apply(model, adapter)
            if adapter.learns_special_tokens(config.head):
                train_tokens(model, special or (0,))
    return model.train()


def _empty_weight(layer: QuantizedLinear, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(layer.out_features, layer.in_features, dtype=dtype, device=next(layer.buffers()).device)


def _empty_product(layer: QuantizedLinear, x: Tensor) -> Tensor:
    wide = layer.in_features
    return in_strips(x, layer.out_features, lambda start, stop: x.new_empty(stop - start, wide))


@dataclass
class _Step:
    """Bytes that a forward pass has left."""

    activations: int = 0
    logits: int = 0


def _learn(
    model: Model, weights: Precision, optimizers: list[torch.optim.Optimizer], settings: TrainSettings, ids: Tensor,
    found: _Step, states: list[Tensor],
) -> None:  # fmt: skip
    """One step of the trainer: micro-batches, gradients in float32, the optimizers."""
    weights.clear()
    for _ in range(min(2, settings.accumulation)):
        saved = memory.Saved(model)
        with saved.measured(settings.activation_checkpointing):
            loss = _loss(model, ids)
        found.activations, found.logits = saved.activations, saved.logits
        loss.backward()
        del loss, saved
        weights.gather()
    for optimizer in optimizers:
        if isinstance(optimizer, Muon):
            optimizer.step()
        else:
            if not states and not isinstance(optimizer, Paged):
                states += [ids.new_empty(size, dtype=torch.uint8) for size in memory.state_sizes(optimizer)]
            passing = ids.new_empty(_passing(optimizer, ids.device), dtype=torch.uint8)
            del passing
    weights.publish()


def _passing(optimizer: torch.optim.Optimizer, device: torch.device) -> int:
    """Bytes that a step of AdamW has for a while: what is brought to the device, what is turned to float32."""
    size = memory.states([optimizer]) if isinstance(optimizer, Paged) else 0
    if isinstance(optimizer, adamw8bit.AdamW8bit):
        largest = max((p.numel() for group in optimizer.param_groups for p in group["params"]), default=0)
        size += 4 * TEMPORARIES * min(adamw8bit.SLICE.get(device.type, adamw8bit.SLICE["else"]), largest)
    return size


def _loss(model: Model, ids: Tensor) -> Tensor:
    """A loss as the objectives' of this head, every token learned."""
    if model.config.head in LANGUAGE_HEADS:
        said = None if model.encoder is None else ids
        return summed_language_loss(model, model.hidden_states(ids, decoder_input_ids=said), ids)
    logits, _ = model(ids[:, None] if model.config.head == "multiple_choice" else ids)
    return sum((each.float().sum() for each in tree_iter(logits)), ids.new_zeros((), dtype=torch.float32))


class _Live(TorchDispatchMode):
    """Adds up the bytes of the storages that live, `now` and at the `peak`, and answers what only numbers could.

    From `keep` on, what is new goes to a heap that keeps what it is given back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.heap: Heap | None = None
        self._fixed = 0
        self._known: dict[int, tuple[int, int | None]] = {}

    def keep(self) -> None:
        """From here on freed memory stays with the process."""
        self.heap, self._fixed = Heap(), self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return False if args[0].dtype == torch.bool else 1 if not args[0].is_floating_point() else 1.0
        if func is torch.ops.aten.nonzero.default:  # all of them
            found = torch.empty(args[0].numel(), args[0].dim(), dtype=torch.long, device=args[0].device)
        else:
            found = func(*args, **(kwargs or {}))
        self._note(each.untyped_storage() for each in tree_iter(found) if isinstance(each, Tensor))
        return found

    def _note(self, storages: Iterable[Any]) -> None:
        for storage in storages:
            if id(storage) not in self._known:
                size = storage.nbytes()
                place = None if self.heap is None else self.heap.take(size)
                self._known[id(storage)] = size, place
                self.now += size
                held = self.now if self.heap is None else self._fixed + round(BESIDE * self.heap.top)
                self.peak = max(self.peak, held)
                weakref.finalize(storage, self._gone, id(storage))

    def _gone(self, key: int) -> None:
        size, place = self._known.pop(key)
        self.now -= size
        if place is not None and self.heap is not None:
            self.heap.give(place)


class Heap:
    """glibc's, as training on a CPU has it: the smallest free chunk that fits, else what lies behind the others;
    neighbours that are free become one. `top` is how far it has ever reached. Sizes and places in bytes.
    """

    ALIGNED, SMALL = 64, 640
    """Bytes that places are multiples of; what tensor, storage and graph node of one tensor take beside its numbers."""
    SPARE = 96
    """What an aligned chunk asks for beyond its size while it is looked for: a hole of just its size is passed over."""

    def __init__(self) -> None:
        self.top = self.end = 0
        self._last, self._spare = -1, 0
        self._taken: dict[int, int] = {}
        self._free: list[tuple[int, int]] = []
        self._starts: dict[int, int] = {}
        self._ends: dict[int, int] = {}

    def take(self, size: int) -> int:
        """The place of a chunk of at least `size`."""
        self._small()
        return self._take(-(-(size + 16) // self.ALIGNED) * self.ALIGNED)

    def _small(self) -> None:
        """What describes a tensor, cut from what the last large chunk has left; freed, it serves the next tensor."""
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
            found, place = self._free[number]
            self._drop(place)
            if found > size:
                self._add(place + size, found - size)
                self._last = place + size
        else:
            place, self.end = self.end, self.end + size
            self.top = max(self.top, self.end)
        self._taken[place] = size
        return place

    def give(self, place: int) -> None:
        """Frees the chunk at a place."""
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
