"""Devices, prices, electricity grids, published models and published trainings, from a dated data file.

`facts.toml` ships with the package. Users extend it or correct it with a file of the same form (`quatrain plan …
--facts my.toml`, or the environment variable QUATRAIN_FACTS): an entry of the same name replaces the shipped one.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from quatrain.core.errors import InputError
from quatrain.core.settings import Settings, did_you_mean, parse

VARIABLE = "QUATRAIN_FACTS"
"""Environment variable with the path of the user's file."""

Positive = Field(gt=0)


class Device(Settings):
    """An accelerator. Rates in TFLOP/s without sparsity, memory in GB (1e9 bytes), bandwidth in TB/s, power in W, price
    in USD per device and hour; None means unknown."""

    name: str
    memory: float = Positive
    fp32: float | None = Field(None, gt=0)
    bf16: float | None = Field(None, gt=0)
    fp8: float | None = Field(None, gt=0)
    int8: float | None = Field(None, gt=0)
    bandwidth: float | None = Field(None, gt=0)
    power: float | None = Field(None, gt=0)
    price: float | None = Field(None, ge=0)
    cores: int | None = Field(None, gt=0)
    """Cores of a processor: its power is that of all of them."""

    def flops_per_second(self, precision: str = "bfloat16") -> float:
        """Peak FLOP/s of matrix products in a precision. Raises InputError if the file does not have it."""
        field = {"float32": "fp32", "bfloat16": "bf16", "float16": "bf16"}.get(precision, precision)
        peak = getattr(self, field, None)
        if peak is None:
            known = [key for key in ("fp32", "bf16", "fp8", "int8") if getattr(self, key) is not None]
            raise InputError(f"{self.name} has no known rate for {precision}; known are {', '.join(known)}.")
        return float(peak) * 1e12


class PublishedModel(Settings):
    """A model as published: the shapes of its config.json and its number of parameters."""

    config: dict[str, Any]
    parameters: int = Positive
    active: int | None = Field(None, gt=0)
    """Parameters that a token passes through, of a mixture of experts."""
    source: str = ""


class PublishedTraining(Settings):
    """A training as its paper or model card reports it; `published` holds figures to compare with."""

    parameters: float = Positive
    tokens: float = Positive
    device: str | None = None
    devices: int | None = Field(None, gt=0)
    days: float | None = Field(None, gt=0)
    device_hours: float | None = Field(None, gt=0)
    published: dict[str, float] = {}
    source: str = ""

    @property
    def hours(self) -> float | None:
        """Device-hours, as published or from devices and days."""
        if self.device_hours is None and self.devices is not None and self.days is not None:
            return self.devices * self.days * 24
        return self.device_hours


class Facts(Settings):
    """The tables of a facts file. `grids` are grams of CO2 equivalent per kWh."""

    date: str = ""
    sources: dict[str, str] = {}
    devices: dict[str, Device] = {}
    grids: dict[str, float] = {}
    models: dict[str, PublishedModel] = {}
    trainings: dict[str, PublishedTraining] = {}

    def device(self, name: str) -> Device:
        """A device by its key. Raises InputError with the known ones."""
        return _named(self.devices, name, "device")

    def grid(self, name: str) -> float:
        """Grams of CO2 equivalent per kWh of a grid, by name or as a number. Raises InputError with the known ones."""
        try:
            return float(name)
        except ValueError:
            return _named(self.grids, name, "grid")


@lru_cache(maxsize=8)
def load_facts(path: str | None = None) -> Facts:
    """The shipped facts, with the entries of the user's file (`path`, else QUATRAIN_FACTS) over them.

    Raises InputError for a file that cannot be read or has wrong entries, all problems at once.
    """
    shipped = tomllib.loads(files("quatrain.planning").joinpath("facts.toml").read_text(encoding="utf-8"))
    path = path or os.environ.get(VARIABLE)
    if path is None:
        return parse(Facts, shipped, what="facts.toml")
    own = _read(Path(path))
    parse(Facts, own, what=path)
    tables = ("sources", "devices", "grids", "models", "trainings")
    merged = {name: {**shipped.get(name, {}), **own.get(name, {})} for name in tables}
    return parse(Facts, {"date": own.get("date", shipped["date"]), **merged}, what=path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: must be a TOML file in UTF-8: {error}.") from None


Value = TypeVar("Value")


def _named(table: Mapping[str, Value], name: str, kind: str) -> Value:
    if name not in table:
        raise InputError(
            f"{kind}: {name!r}; must be one of {_listed(table)}{did_you_mean(name, list(table))}. Add your own with "
            "--facts FILE."
        )
    return table[name]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
