"""The bill of a training: FLOPs, time, price, energy and CO2, each figure with its formula and source.

FLOPs: 6 N D (Kaplan et al. 2020, arXiv 2001.08361), 2 N D forward and 4 N D backward. Full activation checkpointing
computes the forward pass twice, so that the hardware does 8 N D; *model* FLOPs utilization counts 6 N D, *hardware*
FLOPs utilization all that is computed (Chowdhery et al. 2022, arXiv 2204.02311; Korthikanti et al. 2022, arXiv
2205.05198). Energy is the board power of all devices over the whole time, an upper bound; multiply by the power usage
effectiveness (PUE) of the data centre for cooling and losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from quatrain.core.errors import InputError
from quatrain.core.wording import format_duration
from quatrain.planning.facts import Device

PF_DAY = 1e15 * 86_400
"""FLOPs of a petaflop/s-day."""

UTILIZATION = 0.4
"""Default model FLOPs utilization: large trainings publish 0.3 to 0.5 (GPT-3 0.21, Llama 3.1 405B 0.38 to 0.43)."""


def training_flops(parameters: float, tokens: float, *, recompute: bool = False) -> float:
    """6 N D, or 8 N D where the forward pass is computed a second time (activation checkpointing)."""
    return (8 if recompute else 6) * parameters * tokens


def pf_days(flops: float) -> float:
    """Petaflop/s-days: 1e15 FLOP/s for a day."""
    return flops / PF_DAY


@dataclass(frozen=True)
class Cluster:
    """Devices that work together. `utilization` is the share of the peak that model FLOPs reach."""

    device: Device
    count: int = 1
    utilization: float = UTILIZATION
    precision: str = "bfloat16"
    price: float | None = None
    """USD per device and hour; None takes the device's."""
    grid: float = 481.0
    """Grams of CO2 equivalent per kWh."""
    pue: float = 1.0

    def __post_init__(self) -> None:
        problems = []
        if self.count < 1:
            problems.append(f"devices: {self.count}; must be at least 1")
        if not 0 < self.utilization <= 1:
            problems.append(f"utilization: {self.utilization}; must be above 0 and at most 1")
        if self.pue < 1:
            problems.append(f"pue: {self.pue}; must be at least 1 (all power goes into the devices)")
        for name in ("price", "grid"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                problems.append(f"{name}: {value}; must be a number of at least 0")
        if problems:
            raise InputError("This cluster cannot be planned:", problems)


@dataclass(frozen=True)
class Bill:
    """What a training costs. None: unknown, since the device's power or price is not known."""

    flops: float
    pf_days: float
    seconds: float
    device_hours: float
    price: float | None
    energy_kwh: float | None
    co2_kg: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: FLOPs, PF-days, seconds, device-hours, USD, kWh, kg."""
        return asdict(self)

    def rows(self, cluster: Cluster) -> Iterator[list[str]]:
        """Lines of a table: what, how much, formula."""
        peak = cluster.device.flops_per_second(cluster.precision)
        yield ["training FLOPs", f"{self.flops:.3g}", "6 N D"]
        yield [
            "PF-days",
            f"{self.pf_days:,.0f}" if self.pf_days >= 100 else f"{self.pf_days:.3g}",
            "FLOPs / (1e15 x 86,400 s)",
        ]
        name = f"{cluster.count:,} x {cluster.device.name}"
        yield [
            "time", f"{format_duration(self.seconds)} ({self.seconds / 86_400:,.1f} days) on {name}",
            f"FLOPs / ({cluster.count:,} x {peak / 1e12:,.0f} TFLOP/s x {cluster.utilization:g})",
        ]  # fmt: skip
        yield ["device-hours", f"{self.device_hours:,.0f}", "devices x hours"]
        if self.price is not None:
            rate = cluster.device.price if cluster.price is None else cluster.price
            yield ["price", f"{self.price:,.0f} USD", f"device-hours x {rate:g} USD"]
        if self.energy_kwh is not None and self.co2_kg is not None:
            pue = f" x {cluster.pue:g} (PUE)" if cluster.pue != 1 else ""
            yield ["energy", f"{self.energy_kwh:,.0f} kWh", f"device-hours x {cluster.device.power:g} W{pue}"]
            yield ["CO2", f"{self.co2_kg / 1000:,.3g} t", f"energy x {cluster.grid:g} g/kWh"]


def bill(flops: float, cluster: Cluster) -> Bill:
    """The bill of so many model FLOPs on a cluster. Raises InputError for a number of FLOPs that is not positive."""
    if not (math.isfinite(flops) and flops > 0):
        raise InputError(f"FLOPs: {flops}; must be a positive number")
    peak = cluster.device.flops_per_second(cluster.precision)
    seconds = flops / (peak * cluster.count * cluster.utilization)
    return bill_of_hours(cluster.count * seconds / 3600, cluster, flops=flops, seconds=seconds)


def bill_of_hours(
    device_hours: float, cluster: Cluster, *, flops: float | None = None, seconds: float | None = None
) -> Bill:
    """The bill of device-hours that were measured or published; FLOPs follow from the utilization if not given."""
    device = cluster.device
    seconds = device_hours * 3600 / cluster.count if seconds is None else seconds
    if flops is None:
        flops = device_hours * 3600 * device.flops_per_second(cluster.precision) * cluster.utilization
    rate = device.price if cluster.price is None else cluster.price
    energy = None if device.power is None else device_hours * device.power / 1000 * cluster.pue
    return Bill(
        flops=flops,
        pf_days=pf_days(flops),
        seconds=seconds,
        device_hours=device_hours,
        price=None if rate is None else device_hours * rate,
        energy_kwh=energy,
        co2_kg=None if energy is None else energy * cluster.grid / 1000,
    )


def utilization(flops: float, device_hours: float, device: Device, precision: str = "bfloat16") -> float:
    """The share of the devices' peak that a training reached: FLOPs / (device-hours x 3600 x peak)."""
    return flops / (device_hours * 3600 * device.flops_per_second(precision))


@dataclass(frozen=True)
class Offer:
    """A cluster that meets a deadline: the device's key, the number of devices, days and price in USD."""

    key: str
    count: int
    days: float
    price: float


def cheapest_clusters(
    flops: float, days: float, devices: Mapping[str, Device], *, state_bytes: float,
    utilization: float = UTILIZATION, precision: str = "bfloat16", group: int = 1,
) -> list[Offer]:  # fmt: skip
    """The clusters that finish `flops` within `days`, cheapest first.

    A cluster has enough devices for the deadline and for `state_bytes` (weights, gradients and optimizer states, fully
    sharded), rounded up to whole machines of `group` devices. Devices without a price or without this precision are
    left out. Raises InputError for a deadline that is not positive.
    """
    if not days > 0:
        raise InputError(f"deadline: {days} days; must be above 0")
    offers = []
    for key, device in devices.items():
        try:
            peak = device.flops_per_second(precision)
        except InputError:
            continue
        if device.price is None:
            continue
        count = max(
            math.ceil(flops / (peak * utilization * days * 86_400)), math.ceil(state_bytes / (device.memory * 1e9))
        )
        count = max(1, math.ceil(count / group) * group)
        seconds = flops / (peak * utilization * count)
        offers.append(Offer(key, count, seconds / 86_400, seconds / 3600 * count * device.price))
    return sorted(offers, key=lambda offer: offer.price)
