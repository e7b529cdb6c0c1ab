"""The energy of a run: measured where the machine tells it, otherwise estimated and labelled so.

Each part of the machine has the best source that can be read:

- RAPL, the counters of Intel's and AMD's processors (`/sys/class/powercap`), for processor and memory. They count the
  whole machine, and Linux lets only root read them unless its administrator allows it.
- NVML, the energy counter of NVIDIA's GPUs (package `nvidia-ml-py`), for the GPUs that the process uses.
- codecarbon, where it is installed, for a processor without RAPL. It estimates from the processor's model and load.
- an estimate: watts of a busy core times the seconds that cores were busy, watts of a GPU's board times seconds. The
  watts are those of `facts.toml`.

CO2 is the energy times the carbon intensity of the electricity grid.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from quatrain.core.errors import InputError
from quatrain.core.processes import process_number
from quatrain.core.settings import Settings
from quatrain.planning.facts import Facts, load_facts

RAPL_FOLDER = Path("/sys/class/powercap")
POLL_SECONDS = 60.0
"""RAPL's counters start again at 0 after about 260 kJ, so they are read once a minute."""
JOULES_PER_KWH = 3.6e6


class EnergySettings(Settings):
    """How the energy of a run is estimated where it cannot be measured, and its CO2.

    `device` is the processor, `grid` the electricity: names in `facts.toml` or the file of QUATRAIN_FACTS. A grid may
    also be grams of CO2 per kWh. `pue` is the power usage effectiveness of the data centre.
    """

    device: str = "laptop-cpu"
    grid: str = "world"
    pue: float = Field(default=1.0, ge=1, le=10)


@dataclass(frozen=True)
class Energy:
    """The energy of a part of a run in kWh, its CO2 in kg, and where the figure is from.

    `measured`: all of it was measured. `method` names the sources, such as "RAPL, NVML".
    """

    kwh: float = 0.0
    co2_kg: float = 0.0
    measured: bool = True
    method: str = ""

    def __add__(self, other: Energy) -> Energy:
        methods = dict.fromkeys(filter(None, [*self.method.split(" + "), *other.method.split(" + ")]))
        return Energy(
            self.kwh + other.kwh, self.co2_kg + other.co2_kg, self.measured and other.measured, " + ".join(methods)
        )

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> Energy:
        """What `as_dict` gave; nothing for None or another form."""
        try:
            values = stored or {}
            return cls(float(values["kwh"]), float(values["co2_kg"]), bool(values["measured"]), str(values["method"]))
        except (KeyError, TypeError, ValueError):
            return cls()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def text(self) -> str:
        """`2.31 Wh, 1.11 g of CO2 (estimated: …)`."""
        kind = "measured" if self.measured else "estimated"
        return f"{format_energy(self.kwh)}, {format_grams(1000 * self.co2_kg)} of CO2 ({kind}: {self.method})"


def format_energy(kwh: float) -> str:
    """Wh below one kWh: `2.31 Wh`, `12.4 kWh`."""
    return f"{1000 * kwh:,.3g} Wh" if kwh < 1 else f"{kwh:,.4g} kWh"


def format_grams(grams: float) -> str:
    """`1.11 g`, `2.3 kg`."""
    return f"{grams:,.3g} g" if grams < 1000 else f"{grams / 1000:,.4g} kg"


@dataclass(frozen=True)
class Part:
    """The joules of one part of the machine, and their source."""

    joules: float
    method: str
    measured: bool


class Rapl:
    """RAPL's counters of all processors and their memory, in joules since the first reading."""

    def __init__(self, folder: Path = RAPL_FOLDER):
        self.counters = {path: _microjoules(path) for path in self._find(folder)}
        self.joules = 0.0

    @property
    def readable(self) -> bool:
        """Whether the machine has counters that this process may read."""
        return bool(self.counters)

    @staticmethod
    def _find(folder: Path) -> Iterator[Path]:
        """The counters of packages and of memory; cores and graphics are parts of a package."""
        with contextlib.suppress(OSError):
            for place in sorted(folder.glob("intel-rapl:*")):
                with contextlib.suppress(OSError, ValueError):
                    name = (place / "name").read_text(encoding="ascii").strip()
                    _microjoules(place / "energy_uj")
                    if name.startswith(("package", "dram")):
                        yield place / "energy_uj"

    def read(self) -> float:
        """Joules since the beginning. A counter that has started again at 0 is continued."""
        with contextlib.suppress(OSError, ValueError):
            for path, before in self.counters.items():
                now = _microjoules(path)
                step = now - before
                if step < 0:
                    step += _microjoules(path.with_name("max_energy_range_uj"))
                self.joules += step / 1e6
                self.counters[path] = now
        return self.joules


def _microjoules(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))


def nvml_joules() -> Callable[[], float] | None:
    """A function that reads the energy counters of the visible NVIDIA GPUs, in joules; None without NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in _visible(pynvml.nvmlDeviceGetCount())]

        def read() -> float:
            return sum(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles) / 1000

        read()
        return read if handles else None
    except Exception:  # no package, no driver, or a GPU older than Volta, which has no counter
        return None


def _visible(count: int) -> list[int]:
    """The GPUs that CUDA_VISIBLE_DEVICES names by number, else all."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    numbers = [int(each) for each in named.split(",") if each.strip().isdecimal()]
    return [number for number in numbers if number < count] or list(range(count))


def _codecarbon() -> Any:
    """A tracker of codecarbon, which writes no file and no log; None where the package is not installed."""
    try:
        logging.getLogger("codecarbon").disabled = True
        from codecarbon import OfflineEmissionsTracker

        return OfflineEmissionsTracker(
            country_iso_code="USA", save_to_file=False, log_level="critical", tracking_mode="process",
            allow_multiple_runs=True,
        )  # fmt: skip
    except Exception:  # codecarbon is optional, and must not stop a run
        return None


class EnergyMeter:
    """Measures the energy between `start` and `stop`. One meter serves all stages of a run, one after the other.

    Raises InputError for an unknown device or grid.
    """

    def __init__(self, settings: EnergySettings | None = None, facts: Facts | None = None):
        self.facts = facts or load_facts()
        self.settings = settings or EnergySettings()
        self.grid = self.facts.grid(self.settings.grid)
        device = self.facts.device(self.settings.device)
        if device.power is None or device.cores is None:
            raise InputError(
                f"energy.device: {self.settings.device}; an estimate needs its power and its number of cores, and "
                "the facts do not have both."
            )
        self.core_watts = device.power / device.cores
        self.rapl = Rapl()
        self.nvml = nvml_joules()
        self.codecarbon = None if self.rapl.readable else _codecarbon()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin a measurement."""
        self._stopped = threading.Event()
        if self.rapl.readable:
            threading.Thread(target=self._poll, args=(self._stopped,), daemon=True).start()
        self._before = self.rapl.read(), self.nvml() if self.nvml else 0.0, _cpu_seconds(), time.monotonic()
        if self.codecarbon is not None:
            with contextlib.suppress(Exception):
                self.codecarbon.start_task("stage")

    def _poll(self, stopped: threading.Event) -> None:
        while not stopped.wait(POLL_SECONDS):
            self.rapl.read()

    def stop(self) -> Energy:
        """The energy since `start`."""
        self._stopped.set()
        rapl, nvml, cpu, began = self._before
        parts = [self._processor(self.rapl.read() - rapl, _cpu_seconds() - cpu)]
        parts += self._gpus(nvml, time.monotonic() - began)
        kwh = sum(part.joules for part in parts) / JOULES_PER_KWH * self.settings.pue
        return Energy(
            kwh,
            kwh * self.grid / 1000,
            all(part.measured for part in parts),
            " + ".join(part.method for part in parts),
        )

    def _processor(self, counted: float, cpu_seconds: float) -> Part:
        if self.rapl.readable:
            return Part(counted, "RAPL, the whole machine", True)
        if self.codecarbon is not None:
            with contextlib.suppress(Exception):
                spent = self.codecarbon.stop_task("stage")
                return Part(float(spent.energy_consumed - spent.gpu_energy) * JOULES_PER_KWH, "codecarbon", False)
        busy = cpu_seconds * process_number()[1]  # the others of a distributed run are as busy as this one
        return Part(busy * self.core_watts, f"{self.core_watts:g} W a busy core", False)

    def _gpus(self, before: float, seconds: float) -> Iterator[Part]:
        torch = sys.modules.get("torch")
        if torch is None or not (torch.cuda.is_available() and torch.cuda.is_initialized()):
            return
        if self.nvml is not None:
            yield Part(self.nvml() - before, "NVML", True)
            return
        name, count = torch.cuda.get_device_name(), torch.cuda.device_count()
        known = [device for device in self.facts.devices.values() if device.power and _same_device(name, device.name)]
        if known:
            watts = known[0].power or 0.0
            yield Part(watts * count * seconds, f"{watts:g} W of a {known[0].name}", False)
        else:
            yield Part(0.0, f"without the GPU: the watts of {name} are not in the facts", False)


def _same_device(name: str, known: str) -> bool:
    """Whether CUDA's name of a GPU has a known one's model number: "NVIDIA H100 80GB HBM3" has H100."""
    first, second = ([word for word in re.split("[- ]", each) if re.search(r"\d", word)] for each in (name, known))
    return bool(first and second) and first[0] == second[0]


def _cpu_seconds() -> float:
    """Seconds that cores were busy with this process and its finished children."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system
