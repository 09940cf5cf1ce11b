from __future__ import annotations

import csv
import json
from pathlib import Path

import kvquant
import pytest

NONE = "/nonexistent"


@pytest.fixture
def zone(tmp_path: Path) -> Path:
    """A package of a powercap folder, whose counter a test moves."""
    zone = tmp_path / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text("1000000000\n")
    (zone / "energy_uj").write_text("5\n")
    return zone


def test_a_monitor_reads_what_the_counters_took(zone: Path) -> None:
    monitor = kvquant.EnergyMonitor(gpu_id=-1, powercap=zone.parent, carbon_kg_per_kwh=0.5)
    assert monitor.counters == ["rapl package-0"]
    monitor.start()
    (zone / "energy_uj").write_text("2000005\n")
    reading = monitor.stop()
    assert reading.kind == "measured"
    assert reading.energy_joules == pytest.approx(2)
    assert reading.carbon_kg == pytest.approx(2 / 3.6e6 * 0.5)
    assert reading.avg_power_watts == pytest.approx(2 / reading.duration_s)
    assert reading.idle_joules is None
    with pytest.raises(ValueError, match="start it first"):
        monitor.stop()


def test_without_a_counter_there_is_no_figure() -> None:
    monitor = kvquant.EnergyMonitor(gpu_id=-1, powercap=NONE)
    monitor.start()
    reading = monitor.stop()
    assert reading.energy_joules is None
    assert reading.kind == "not measured"
    assert "no intel-rapl zones" in repr(reading)
    assert monitor.measure_idle(0.001) is None
    assumed = kvquant.EnergyMonitor(gpu_id=-1, powercap=NONE, assume_power_watts=65)
    assumed.start()
    assert assumed.stop().kind == "assumed"


def test_a_profiler_writes_its_summary(zone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "energy"
    profiler = kvquant.DetailedEnergyProfiler(folder, gpu_id=-1, powercap=zone.parent)
    with profiler.profile("prefill") as scope:
        (zone / "energy_uj").write_text("4000005\n")
        scope.set_tokens(8)
    with pytest.raises(ValueError, match="outside"):
        scope.set_tokens(1)
    with pytest.raises(ZeroDivisionError), profiler.profile("fails"):
        raise ZeroDivisionError
    profiler.save_summary()
    results = json.loads((folder / "energy_summary.json").read_text())["results"]
    assert [r["operation"] for r in results] == ["prefill", "fails"]
    assert results[0]["joules_per_token"] == pytest.approx(0.5)
    with (folder / "energy_measurements.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "timestamp",
        "operation",
        "duration_sec",
        "energy_joules",
        "avg_power_watts",
        "carbon_kg",
    ]
    assert float(rows[0]["energy_joules"]) == pytest.approx(4)


def test_mistakes_are_value_errors() -> None:
    with pytest.raises(ValueError, match="power"):
        kvquant.EnergyMonitor(assume_power_watts=-1)
    with pytest.raises(kvquant.IoError):
        kvquant.DetailedEnergyProfiler("/proc/nonexistent")
