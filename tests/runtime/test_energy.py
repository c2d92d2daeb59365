"""Energy is that of the hardware's counters, which wrap, and of earlier processes."""

import sys
import threading
from itertools import count
from types import ModuleType

import pytest
import torch

from diffusion_core.runtime import energy
from diffusion_core.runtime.energy import Counter, EnergyMeter, counters
from diffusion_core.stages.cost import Cost, as_metrics

CPU = torch.device("cpu")


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """A machine with two packages, whose first one has a part of its own."""
    for name, microjoules in {"intel-rapl:0": 5_000_000, "intel-rapl:0:0": 1_000_000, "intel-rapl:1": 900_000}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "max_energy_range_uj").write_text("10000000\n")
        (tmp_path / name / "energy_uj").write_text(f"{microjoules}\n")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    return tmp_path


def test_packages_are_added_without_their_parts_and_past_the_wrap(powercap):
    meter = EnergyMeter(counters(CPU), spent=100.0)
    (powercap / "intel-rapl:0/energy_uj").write_text("8000000\n")
    (powercap / "intel-rapl:0:0/energy_uj").write_text("9000000\n")
    (powercap / "intel-rapl:1/energy_uj").write_text("1900000\n")
    assert meter.joules == pytest.approx(100 + 3 + 1)
    (powercap / "intel-rapl:0/energy_uj").write_text("1000000\n")
    assert meter.joules == pytest.approx(100 + 3 + 1 + 3)


def test_a_machine_without_counters_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    assert counters(CPU) == []
    assert EnergyMeter([]).joules is None
    assert "joules" not in Cost(CPU).spent


def test_a_counter_that_cannot_be_read_is_left_out(powercap):
    (powercap / "intel-rapl:0/energy_uj").unlink()
    assert len(counters(CPU)) == 1


def test_a_cost_continues_that_of_earlier_processes(powercap):
    cost = Cost(CPU, 2, {"seconds": 3600.0, "device_seconds": 3600.0, "joules": 3.6e6, "step": 4})
    spent = cost.spent
    assert spent["seconds"] == pytest.approx(3600.0, abs=5)
    assert 2 * (spent["seconds"] - 3600) == pytest.approx(spent["device_seconds"] - 3600, abs=0.01)
    found = as_metrics("train", spent)
    assert set(found) == {"cost/train_device_hours", "cost/train_energy_kwh"}
    assert found["cost/train_energy_kwh"] == pytest.approx(1.0)


def test_a_counter_that_fails_later_ends_the_counting_and_no_training(powercap, caplog):
    cost = Cost(CPU)
    assert "joules" in cost.spent
    (powercap / "intel-rapl:1/energy_uj").unlink()
    assert "joules" not in cost.spent
    assert "joules" not in cost.spent
    assert caplog.text.count("energy is not counted any more") == 1
    # A sum of the processes after it would be too small.
    (powercap / "intel-rapl:1/energy_uj").write_text("0\n")
    assert "joules" not in Cost(CPU, earlier=cost.spent).spent
    assert "joules" in Cost(CPU, earlier=cost.spent | {"joules": 1.0}).spent


def test_a_counter_that_wraps_between_two_reads_of_the_stage_loses_nothing(monkeypatch):
    monkeypatch.setattr(energy, "SECONDS", 0.01)
    values, wrapped = count(0.0, 4.0), threading.Event()

    def read():
        value = next(values)
        if value > 100.0:
            wrapped.set()
        return value % 10.0

    meter = EnergyMeter([Counter(read, wraps_at=10.0)])
    assert wrapped.wait(10.0)
    joules = meter.joules
    assert 100.0 < joules < next(values)
    assert joules % 4.0 == 0.0


class NoSuchCounter(Exception):
    """Stands for the error of NVML."""


@pytest.mark.parametrize("counts", [True, False])
def test_a_gpu_joins_where_nvml_counts_its_energy(monkeypatch, tmp_path, counts):
    """With stand-ins for the driver's library and the GPU's identity; no driver is asked."""
    nvml, asked = ModuleType("pynvml"), []

    def consumed(handle):
        asked.append(handle)
        if not counts:
            raise NoSuchCounter
        return 2_500 * len(asked)

    nvml.NVMLError, nvml.nvmlInit = NoSuchCounter, lambda: None
    nvml.nvmlDeviceGetHandleByUUID, nvml.nvmlDeviceGetTotalEnergyConsumption = bytes.decode, consumed
    nvml.__spec__ = energy.__spec__
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("Properties", (), {"uuid": "1-2"}))
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    found = counters(torch.device("cuda", 0))
    assert set(asked) == {"GPU-1-2"}
    assert [isinstance(each, Counter) for each in found] == [True] * counts
    if counts:
        assert EnergyMeter(found).joules == pytest.approx(2.5)
