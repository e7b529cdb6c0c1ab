"""The energy of a run: counters where the machine has them, an estimate that says so where it has none."""

import sys
import time
import types
from pathlib import Path

import pytest

from quatrain.core.errors import InputError
from quatrain.planning import energy
from quatrain.planning.energy import Energy, EnergyMeter, EnergySettings, Rapl, nvml_joules
from quatrain.planning.facts import Facts, load_facts


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without counters and without codecarbon, whatever the one of the test has."""
    monkeypatch.setattr(energy, "Rapl", lambda: Rapl(tmp_path / "none"))
    monkeypatch.setattr(energy, "nvml_joules", lambda: None)
    monkeypatch.setattr(energy, "_codecarbon", lambda: None)


def busy(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def counter(folder: Path, place: str, name: str, microjoules: int) -> Path:
    path = folder / place
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(name + "\n", encoding="ascii")
    (path / "max_energy_range_uj").write_text("1000000000\n", encoding="ascii")
    (path / "energy_uj").write_text(f"{microjoules}\n", encoding="ascii")
    return path / "energy_uj"


def test_an_estimate_is_watts_times_busy_seconds_and_says_so(bare) -> None:
    meter = EnergyMeter(EnergySettings(grid="france", pue=1.5))
    meter.start()
    busy(0.2)
    found = meter.stop()
    assert found.kwh == pytest.approx(3.5 * 0.2 * 1.5 / 3.6e6, rel=0.5)
    assert found.co2_kg == pytest.approx(found.kwh * 56 / 1000)
    assert not found.measured and found.text.endswith("(estimated: 3.5 W a busy core)")


def test_the_counters_of_processors(tmp_path: Path) -> None:
    """Packages and memory add up; cores are in their package; a counter that starts again is continued."""
    package = counter(tmp_path, "intel-rapl:0", "package-0", 999_000_000)
    memory = counter(tmp_path, "intel-rapl:0:1", "dram", 10)
    cores = counter(tmp_path, "intel-rapl:0:0", "core", 10)
    rapl = Rapl(tmp_path)
    assert rapl.readable and rapl.read() == 0
    package.write_text("2000000", encoding="ascii")  # 1 J to the end of its range, then 2 J
    memory.write_text("500010", encoding="ascii")
    cores.write_text("900000000", encoding="ascii")
    assert rapl.read() == pytest.approx(3.5)
    package.unlink()
    assert rapl.read() == pytest.approx(3.5)  # a counter that vanishes does not stop a run


def test_a_run_with_counters_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = counter(tmp_path, "intel-rapl:0", "package-0", 0)
    monkeypatch.setattr(energy, "Rapl", lambda: Rapl(tmp_path))
    monkeypatch.setattr(energy, "nvml_joules", lambda: None)
    meter = EnergyMeter(EnergySettings(grid="100"))
    meter.start()
    package.write_text("36000000", encoding="ascii")
    found = meter.stop()
    assert found == Energy(1e-5, pytest.approx(1e-6), True, "RAPL, the whole machine")
    meter.start()
    assert meter.stop().kwh == 0  # from the start of each stage


def test_the_counters_of_gpus(bare, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML is asked for the visible GPUs, in millijoules."""
    millijoules = {0: 5_000, 1: 7_000, 2: 9_000}
    nvml = types.SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 3, nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=millijoules.__getitem__,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    read = nvml_joules()
    assert read is not None and read() == 14.0
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert nvml_joules()() == 21.0
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: 1 / 0  # a GPU without the counter
    assert nvml_joules() is None


@pytest.mark.parametrize(
    ("name", "method", "joules"),
    [("NVIDIA H100 80GB HBM3", "700 W of a NVIDIA H100 SXM", True), ("Tesla T4", "70 W of a NVIDIA T4", True),
     ("NVIDIA GeForce RTX 9999", "without the GPU", False)],
)  # fmt: skip
def test_a_gpu_without_a_counter_is_estimated(bare, monkeypatch, name: str, method: str, joules: bool) -> None:
    import torch

    for key, value in (
        ("is_available", True), ("is_initialized", True), ("get_device_name", name), ("device_count", 2)
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, key, lambda value=value: value)
    meter = EnergyMeter()
    (part,) = meter._gpus(0.0, 10.0)
    assert method in part.method and not part.measured and (part.joules > 0) == joules
    if joules:
        assert part.joules == float(method.split()[0]) * 2 * 10


def test_codecarbon_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("codecarbon", reason="codecarbon is optional")
    monkeypatch.setattr(energy, "Rapl", lambda: Rapl(tmp_path))
    monkeypatch.setattr(energy, "nvml_joules", lambda: None)
    meter = EnergyMeter()
    meter.start()
    busy(0.1)
    found = meter.stop()
    assert found.method == "codecarbon" and found.kwh > 0 and not found.measured


def test_energies_add_up_and_are_stored() -> None:
    one, two = Energy(1.0, 0.5, True, "RAPL"), Energy(0.5, 0.25, False, "3.5 W a busy core")
    both = one + two + one
    assert both == Energy(2.5, 1.25, False, "RAPL + 3.5 W a busy core")
    assert sum([one, one], Energy()) == Energy(2.0, 1.0, True, "RAPL")
    assert Energy.of(both.as_dict()) == both
    assert Energy.of(None) == Energy.of({"kwh": "x"}) == Energy()
    assert both.text == "2.5 kWh, 1.25 kg of CO2 (estimated: RAPL + 3.5 W a busy core)"
    assert Energy(0.00231, 0.00111, True, "RAPL").text == "2.31 Wh, 1.11 g of CO2 (measured: RAPL)"


def test_an_unknown_grid_or_device_is_refused(bare) -> None:
    with pytest.raises(InputError, match="did you mean france"):
        EnergyMeter(EnergySettings(grid="frence"))
    with pytest.raises(InputError, match="number of cores"):
        EnergyMeter(EnergySettings(device="h100"))
    facts = load_facts()
    own = Facts(
        **(dict(facts) | {"devices": {"laptop-cpu": facts.device("laptop-cpu").model_copy(update={"cores": 4})}})
    )
    assert EnergyMeter(facts=own).core_watts == 7.0
