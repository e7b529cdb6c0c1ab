"""What training a model by a method would take, before anything of it is there but its configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from quatrain.adapters.settings import OVER_LINEAR, PROMPTS, AdapterSettings
from quatrain.core.settings import Settings, did_you_mean, parse
from quatrain.core.wording import format_bytes
from quatrain.models.transformer.config import ModelConfig
from quatrain.planning.counts import weight_bytes
from quatrain.planning.machine import choose_device
from quatrain.training.forecast import Forecast, forecast
from quatrain.training.precision import dtype_name, working_dtype
from quatrain.training.settings import TrainSettings

METHODS = ("full", "lora", "qlora", *get_args(AdapterSettings.model_fields["method"].annotation)[1:])
"""`full` trains every weight; `qlora` is a LoRA over four bits a weight; the others are as in a recipe."""

USUAL_CONTEXT = 2048
"""Tokens of a row where nothing is said, of a model that reads as many."""


class _Wanted(Settings):
    train: TrainSettings
    adapter: AdapterSettings | None = None


@dataclass(frozen=True)
class Planned:
    """What a method comes to; `merged` are the bytes of the float32 weights that a stage makes of it at its end."""

    method: str
    rows: int
    context: int
    precision: str
    optimizer: str
    device: str
    forecast: Forecast
    merged: int

    def as_dict(self) -> dict[str, Any]:
        """For programs: elements, percent, and bytes by part and at the peak."""
        found = {name: value for name, value in asdict(self).items() if name != "forecast"}
        said = self.forecast
        counts = {"trainable": said.trainable, "all": said.total, "percent": 100 * said.trainable / max(1, said.total)}
        return found | counts | {"memory": {**said.parts, "peak": said.peak}, "host": said.host}

    def rows_for_table(self) -> Iterator[list[object]]:
        """What a person is told, line by line."""
        said = self.forecast
        yield [f"{self.method}: trains", f"{said.trainable:,} of {said.total:,} ({said.trainable / said.total:.2%})"]
        size = f"{self.rows:,} x {self.context:,} tokens at a time"
        yield ["  a step", f"{size}, {self.precision}, {self.optimizer}, {self.device}"]
        for name, part in said.parts.items():
            if part:
                yield [f"  {name}", format_bytes(part)]
        yield ["  peak memory, about", format_bytes(said.peak)]
        if said.host:
            yield ["  states in host memory", format_bytes(said.host)]
        if self.merged:
            yield ["  weights merged at its end, float32", format_bytes(self.merged)]


def planned(
    config: ModelConfig, method: str, *, train: Mapping[str, Any], adapter: Mapping[str, Any],
    context: int | None = None, special: Sequence[int] = (), stored: str = "float32",
) -> Planned:  # fmt: skip
    """The memory of a training step of a model by a method; `train` and `adapter` are settings as in a recipe,
    `special` the special tokens, whose rows of the embedding learn beside an adapter, `stored` the dtype of the files.

    Raises InputError naming every wrong one.
    """
    problems = []
    if method not in METHODS:
        problems.append(f'method: "{method}"; must be one of {", ".join(METHODS)}{did_you_mean(method, METHODS)}')
    if method == "full" and adapter:
        problems.append(f'{", ".join(adapter)}: method = "full" trains every weight and has no adapter: leave it out')
    usual = AdapterSettings.model_fields["num_virtual_tokens"].default
    slots = adapter.get("num_virtual_tokens", usual) if method in PROMPTS else 0
    longest = config.max_position_embeddings - slots
    left = f" ({slots} slots are the {method}'s)" if slots else ""
    if context is not None and not 2 <= context <= longest:
        problems.append(f"context: {context}; must be from 2 to the model's longest, {longest:,}{left}")
    length = context or min(longest, USUAL_CONTEXT)
    batch = train.get("batch_tokens", TrainSettings.model_fields["batch_tokens"].default)
    if 0 < batch < length:
        problems.append(f"batch_tokens: {batch}; must be at least one row, {length} tokens (context)")
    wanted: dict[str, Any] = {"train": {"steps": 1, "warmup_steps": 0, "schedule": "constant", **train}}
    if method in METHODS and method != "full":
        kind = {"method": "lora", "quantize_base": "nf4"} if method == "qlora" else {"method": method}
        wanted["adapter"] = kind | dict(adapter)
    settings = parse(_Wanted, wanted, what="the plan", more=problems)
    device = choose_device(settings.train.device)
    precision = dtype_name(working_dtype(settings.train, device))
    rows = max(1, settings.train.batch_tokens // length // settings.train.accumulation)
    found = forecast(
        config, settings.train, rows=rows, length=length, precision=precision, adapter=settings.adapter, device=device,
        special=special, stored=stored,
    )  # fmt: skip
    chosen = settings.adapter
    merges = chosen is not None and chosen.method in OVER_LINEAR and chosen.quantize_base != "float"
    merged = weight_bytes(config) if merges else 0
    return Planned(method, rows, length, precision, settings.train.optimizer, device.type, found, merged)
