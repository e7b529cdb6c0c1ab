"""Decoding steps of fixed shape over the slot cache, captured in CUDA graphs.

A step of a small model launches several hundred kernels, which takes longer than running them. A CUDA graph launches
all of them at once, with the addresses that they had when the graph was captured: so a step's inputs lie in buffers
that stay, its rows and columns are rounded up to a few sizes, and there is a graph for each of these. Without CUDA the
same steps run uncaptured, which is how they are tested.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from quatrain.models.transformer.kv_cache import KVCache, StaticRows
from quatrain.models.transformer.positions import depends_on_length

ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Rows of a step."""
COLUMNS = 256
"""The least number of columns that a step reads; more are twice as many, and so on."""
WARMUPS = 2
"""Runs before a capture, in which kernels are chosen and tables are made."""

Step = Callable[[], Tensor]


def step_size(count: int, longest: int, cache: KVCache) -> tuple[int, int]:
    """Rows and columns of the step for `count` rows of at most `longest` tokens, within the size of a cache."""
    rows = next((size for size in ROWS if size >= count), count)
    columns = COLUMNS
    while columns < longest:
        columns *= 2
    return min(rows, cache.slots), min(columns, cache.max_length)


def captured(run: Step, pool: Any = None) -> Step:
    """`run`, whose inputs and result lie in tensors that stay, as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class StaticDecoder:
    """The next tokens of texts in the first slots of a cache, in steps of fixed shape.

    `use`: None for a model on CUDA; True also runs them uncaptured on other devices. `refresh` decides, and again when
    the model has changed; call it before each batch of texts. `reason` says why no static steps run. Graphs are
    dropped when weights or the cache have moved; weights may change in place.
    """

    def __init__(self, model: Any, cache: KVCache, use: bool | None = None):
        self.model, self.cache, self.use = model, cache, use
        self.reason = "nothing was decoded yet"
        self.steps = 0
        """Static steps so far."""
        self._runs: dict[tuple[int, int, str | None], tuple[StaticRows, Step]] = {}
        self._places: tuple[Any, ...] = ()
        """Where the cache was when the steps were made."""
        self._weights: tuple[Any, ...] = ()
        """Where the weights were when the steps were made."""
        self._failed = False
        self._tables: list[Any] = []
        self._pool: Any = None

    def refresh(self) -> None:
        """Decides whether static steps run, and forgets those of weights that have moved."""
        self.reason = self._reason() or ""
        if self.reason:
            self._forget()
            return
        tensors = (*self.model.parameters(), *self.model.buffers())
        weights = tuple((tensor.data_ptr(), tensor.dtype, tensor.shape) for tensor in tensors)
        if weights != self._weights:
            self._forget()
            self._weights = weights

    def _reason(self) -> str | None:
        model, config = self.model, self.model.config
        if self.use is False:
            return "switched off"
        if self.use is None and model.device.type != "cuda":
            return f"the model is on {model.device.type}"
        if self._failed:
            return "capturing a step failed"
        if config.architecture != "decoder":
            return "the encoder's output has no fixed address"
        if config.recurs:
            return "a step of fixed shape has no recurrent layers"
        if config.experts is not None:
            return "which experts a step uses depends on its tokens"
        if any(depends_on_length(scaling) for scaling in (config.rope_scaling, config.local_rope_scaling)):
            return "rotary frequencies depend on the length of the text"
        if model.soft_prompt is not None or config.padding_positions != "counted":
            return "the model has a soft prompt, or positions that depend on tokens"
        if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
            return "the model has a hook"
        return None

    def decode(self, tokens: Sequence[int], adapters: Sequence[str | None]) -> Tensor | None:
        """Logits (B, V) in float32 after one more token in each of the first B slots, valid until the next step.

        None if the step has to run otherwise. There is room for the tokens; the caller counts them.
        """
        cache, count = self.cache, len(tokens)
        lengths = cache.lengths[:count]
        longest = max(lengths) + 1
        config = self.model.config
        if self.reason or cache.segments is not None or len(set(adapters)) > 1 or not min(lengths):
            return None
        if config.has_position_limit and longest > config.context_length:
            return None
        rows, columns = step_size(count, longest, cache)
        key = rows, columns, adapters[0]
        if self.model.adapter_set is not None:
            self.model.adapter_set.activate([adapters[0]] * rows)
        self._check_addresses()
        if key not in self._runs:
            static = StaticRows(cache, rows, columns)
            run = self._new_step(static, adapters[0])
            if run is None:
                return None
            self._runs[key] = static, run
        static, run = self._runs[key]
        padding = [0] * (rows - count)
        values = [[*tokens, *padding], [*lengths, *padding], [*cache.starts[:count], *padding], [1] * count + padding]
        static.state.copy_(_on_host(values, cache.device), non_blocking=True)
        self.steps += 1
        return run()[:count]

    def _check_addresses(self) -> None:
        """Forgets all steps if a tensor that they write has moved."""
        places = tuple((tensor.data_ptr(), tensor.shape) for tensor in (*self.cache.keys, *self.cache.values))
        if places != self._places:
            self._forget()
            self._places = places

    def _forget(self) -> None:
        self._runs, self._tables, self._places, self._pool = {}, [], (), None

    def _new_step(self, static: StaticRows, adapter: str | None) -> Step | None:
        model, named = self.model, {}
        if model.adapter_set is not None:
            named["adapters"] = [adapter] * static.count

        def run() -> Tensor:
            hidden = model.hidden_states(static.state[0, :, None], cache=static, **named)
            logits: Tensor = model.lm_logits(hidden[:, -1]).float()
            return logits

        if self.cache.device.type != "cuda":
            return run
        try:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            step = captured(run, self._pool)
        except RuntimeError as error:  # A layer that waits for the device, or allocates outside of its stream.
            logging.getLogger(__name__).warning("Decoding without CUDA graphs: %s", error)
            self._failed, self.reason = True, "capturing a step failed"
            self._forget()
            return None
        # A table that grows is replaced; the graph reads the one that it was captured with.
        self._tables += [dict(rotary._tables) for rotary in model._rotary.values()]
        return step


def _on_host(values: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Numbers in memory from which a copy to the device does not wait."""
    return torch.tensor(values, dtype=torch.long, pin_memory=device.type == "cuda")
