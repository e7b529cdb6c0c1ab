"""Plans a training from a model's configuration: what `quatrain plan` shows for a method and for a recipe's stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from quatrain.adapters.settings import LAYER_METHODS, PROMPT_METHODS, AdapterSettings
from quatrain.core.settings import Settings, did_you_mean, parse
from quatrain.core.wording import format_bytes
from quatrain.models.transformer.config import ModelConfig
from quatrain.planning.counts import weight_bytes
from quatrain.planning.machine import choose_device
from quatrain.planning.training_memory import TrainingMemory, training_memory
from quatrain.training.precision import dtype_name, working_dtype
from quatrain.training.settings import TrainSettings

METHODS = ("full", "lora", "qlora", *get_args(AdapterSettings.model_fields["method"].annotation)[1:])
"""`full` trains every weight; `qlora` is a LoRA over a four-bit base; the others are a recipe's adapter methods."""

DEFAULT_CONTEXT = 2048
"""Default tokens per row, at most the model's context."""


class _Request(Settings):
    train: TrainSettings
    adapter: AdapterSettings | None = None


@dataclass(frozen=True)
class TrainingPlan:
    """The estimate for one training.

    `merged` are the bytes of the float32 weights when a stage merges an adapter over a quantized base at its end; 0 for
    other methods.
    """

    method: str
    rows: int
    context: int
    precision: str
    optimizer: str
    device: str
    memory: TrainingMemory
    merged: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON: elements, percent, and bytes by part and at the peak."""
        memory = self.memory
        fields = {name: value for name, value in asdict(self).items() if name != "memory"}
        percent = 100 * memory.trainable / max(1, memory.total)
        counts = {"trainable": memory.trainable, "all": memory.total, "percent": percent}
        return fields | counts | {"memory": {**memory.parts, "peak": memory.peak}, "host": memory.host}

    def rows_for_table(self) -> Iterator[list[object]]:
        """Two cells for each line of a table: a name and its value."""
        memory = self.memory
        share = memory.trainable / memory.total
        yield [f"{self.method}: trains", f"{memory.trainable:,} of {memory.total:,} ({share:.2%})"]
        size = f"{self.rows:,} x {self.context:,} tokens at a time"
        yield ["  a step", f"{size}, {self.precision}, {self.optimizer}, {self.device}"]
        for name, part in memory.parts.items():
            if part:
                yield [f"  {name}", format_bytes(part)]
        yield ["  peak memory, about", format_bytes(memory.peak)]
        if memory.host:
            yield ["  states in host memory", format_bytes(memory.host)]
        if self.merged:
            yield ["  weights merged at its end, float32", format_bytes(self.merged)]


def plan_training(
    config: ModelConfig, train: TrainSettings, context: int, *, method: str = "full",
    adapter: AdapterSettings | None = None, special: Sequence[int] = (), stored: str = "float32",
) -> TrainingPlan:  # fmt: skip
    """Estimates a training with these settings, on rows of `context` tokens; `method` is the name that the plan shows.

    `special` are the special tokens, whose rows of the embedding can learn beside an adapter; `stored` is the dtype of
    the model's files. Raises InputError for an adapter that does not fit the model.
    """
    device = choose_device(train.device)
    precision = dtype_name(working_dtype(train, device))
    rows = max(1, train.batch_tokens // context // train.accumulation)
    memory = training_memory(
        config, train, rows=rows, length=context, precision=precision, adapter=adapter, device=device,
        special=special, stored=stored,
    )  # fmt: skip
    merges = adapter is not None and adapter.method in LAYER_METHODS and adapter.quantize_base != "float"
    merged = weight_bytes(config) if merges else 0
    return TrainingPlan(method, rows, context, precision, train.optimizer, device.type, memory, merged)


def plan_method(
    config: ModelConfig, method: str, *, train: Mapping[str, Any], adapter: Mapping[str, Any],
    context: int | None = None, special: Sequence[int] = (), stored: str = "float32",
) -> TrainingPlan:  # fmt: skip
    """Estimates a training by one of `METHODS`; `train` and `adapter` are settings as in a recipe.

    `context` is the model's longest, at most `DEFAULT_CONTEXT`, unless given. Raises InputError that names every wrong
    setting.
    """
    problems = []
    if method not in METHODS:
        problems.append(f'method: "{method}"; must be one of {", ".join(METHODS)}{did_you_mean(method, METHODS)}')
    if method == "full" and adapter:
        problems.append(f'{", ".join(adapter)}: method = "full" trains every weight and has no adapter: leave it out')
    default_slots = AdapterSettings.model_fields["num_virtual_tokens"].default
    slots = adapter.get("num_virtual_tokens", default_slots) if method in PROMPT_METHODS else 0
    longest = config.max_position_embeddings - slots
    left = f" ({slots} positions are the {method}'s)" if slots else ""
    if context is not None and not 2 <= context <= longest:
        problems.append(f"context: {context}; must be from 2 to the model's longest, {longest:,}{left}")
    length = context or min(longest, DEFAULT_CONTEXT)
    batch_tokens = train.get("batch_tokens", TrainSettings.model_fields["batch_tokens"].default)
    if 0 < batch_tokens < length:
        problems.append(f"batch_tokens: {batch_tokens}; must be at least one row, {length} tokens (context)")
    request: dict[str, Any] = {"train": {"steps": 1, "warmup_steps": 0, "schedule": "constant", **train}}
    if method in METHODS and method != "full":
        base = {"method": "lora", "quantize_base": "nf4"} if method == "qlora" else {"method": method}
        request["adapter"] = base | dict(adapter)
    settings = parse(_Request, request, what="the plan", more=problems)
    return plan_training(
        config, settings.train, length, method=method, adapter=settings.adapter, special=special, stored=stored
    )
