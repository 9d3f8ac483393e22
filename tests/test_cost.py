"""What training runs cost: sums by hand, counters of energy, and a run that is really killed."""

import ctypes.util
import signal
import subprocess
import time

import pytest

from clipmill.cost import CostSession, DevicePrice, RunCost, cost_json, read_cost, read_sessions
from clipmill.engine.cost_meter import NvmlCounter, RaplCounter
from clipmill.errors import ArtifactError, ConfigError
from clipmill.report.sections.cost import cost_cells, cost_section
from clipmill.storage import write_json
from helpers import program, program_environment
from helpers.cost_drill import CHECKPOINT_EVERY, INTERVAL_SECONDS, STEPS, run_to_end


def session(**fields):
    common = {"started": 0.0, "device": "H200", "num_devices": 8, "first_step": 0, "last_step": 0}
    return CostSession(**(common | fields))


def test_sums():
    first = session(seconds=1800, energy_joules=3.6e6, price=2.5, currency="USD", lost_steps=3)
    second = session(
        seconds=900, device="H100", num_devices=4, energy_joules=1.8e6, price=2.0, currency="USD"
    )
    cost = RunCost((first, second))
    assert cost.device_hours == {"H200": 4.0, "H100": 1.0}
    assert cost.wall_hours == 0.75
    assert cost.energy_kwh == 1.5
    assert cost.prices == {"USD": 12.0}
    assert (cost.num_restarts, cost.lost_steps) == (1, 3)
    assert cost.to_metrics()["cost/price_USD"] == 12.0
    assert cost.to_metrics()["cost/device_hours"] == 5.0
    assert cost_cells(cost)[:5] == [
        "4.000 of H200, 1.000 of H100",
        "0.750",
        "1.500 kWh",
        "12.00 USD",
        "1",
    ]


def test_amounts_too_small_to_show_are_not_zero():
    cost = RunCost((session(seconds=0.4, energy_joules=360.0, price=1.0, currency="USD"),))
    assert cost_cells(cost)[:4] == [
        "below 0.001 of H200",
        "below 0.001",
        "below 0.001 kWh",
        "below 0.01 USD",
    ]
    assert cost_cells(RunCost((session(seconds=0.0),)))[1] == "0.000"


def test_what_is_not_known_is_not_guessed():
    known = session(seconds=60, energy_joules=5.0, price=1.0, currency="EUR")
    cost = RunCost((known, session(seconds=60)))
    assert cost.energy_kwh is None
    assert cost.prices == {}
    assert cost_cells(cost)[2:4] == ["not readable", "not configured"]
    assert cost.to_json()["price"] is cost.to_json()["energy_kwh"] is None
    assert not {name for name in cost.to_metrics() if "price" in name or "energy" in name}
    assert "not recorded" in cost_section({"a": cost, "b": None}).body
    assert "No training recorded" in cost_section({"b": None}).body


@pytest.mark.parametrize(
    ("step", "lost"),
    [
        # The second session began at 20, has checkpoints at 30 and 40, and came to 44.
        (44, [(0, 0), (0, 0)]),
        (40, [(0, 0), (4, 5.0)]),
        (30, [(0, 0), (14, 15.0)]),
        (20, [(0, 0), (24, 26.0)]),  # the first session's checkpoint
        (10, [(15, 16.0), (24, 26.0)]),
        (0, [(25, 30.0), (24, 26.0)]),
    ],
)
def test_lost_work(step, lost):
    first = session(seconds=30, last_step=25, marks=[(10, 14.0), (20, 24.0)])
    second = session(seconds=26, first_step=20, last_step=44, marks=[(30, 11.0), (40, 21.0)])
    if step >= 20:
        first.lose_from(20)
        lost = [(5, 6.0), lost[1]]
    for one in (first, second):
        one.lose_from(step)
    assert [(s.lost_steps, s.lost_seconds) for s in (first, second)] == lost
    first.lose_from(step)
    assert (first.lost_steps, first.lost_seconds) == lost[0]  # counted once


def test_a_price_is_a_number_and_a_currency(monkeypatch):
    for text, expected in (("", None), ("2.5 USD", DevicePrice(2.5, "USD"))):
        monkeypatch.setenv("CLIPMILL_DEVICE_PRICE", text)
        assert DevicePrice.from_environment() == expected
    for text in ("2.5", "USD", "2,5 USD", "-1 USD", "nan USD", "2.5 dollars"):
        monkeypatch.setenv("CLIPMILL_DEVICE_PRICE", text)
        with pytest.raises(ConfigError, match=r"2\.50 USD"):
            DevicePrice.from_environment()


def test_a_file_that_was_changed(tmp_path):
    assert read_cost(str(tmp_path)) is None
    write_json(str(tmp_path / "cost.json"), cost_json([session(marks=[(1, 2.0)])]))
    assert read_sessions(str(tmp_path)) == [session(marks=[(1, 2.0)])]
    for value in ({"format": 2}, [], {"format": 1, "sessions": [{"seconds": 1}]}):
        write_json(str(tmp_path / "cost.json"), value)
        with pytest.raises(ArtifactError, match=r"cost\.json can't be read"):
            read_cost(str(tmp_path))


def test_energy_of_cpu_packages(tmp_path):
    names = {
        "intel-rapl:0": "package-0",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl:0:0": "core",
        "intel-rapl-mmio:0": "package-0",
    }
    for zone, name in names.items():
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "energy_uj").write_text("900000\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("1000000\n")
    counter = RaplCounter(tmp_path)
    assert counter() == 0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("950000")
    assert counter() == pytest.approx(0.05)
    for zone in ("intel-rapl:1", "intel-rapl:2", "intel-rapl:0:0", "intel-rapl-mmio:0"):
        (tmp_path / zone / "energy_uj").write_text("100000")  # it began anew
    assert counter() == pytest.approx(0.05 + 0.2)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert counter() is None
    assert RaplCounter(tmp_path / "none")() is None


def test_energy_of_a_gpu(tmp_path):
    """Against a library with NVML's interface, since no machine of ours has its GPU."""
    source, library = tmp_path / "nvml.c", tmp_path / "nvml.so"
    source.write_text(
        """
        #include <string.h>
        static unsigned long long energy = 5000000000000ULL;
        int nvmlInit_v2(void) { return 0; }
        int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
            *device = &energy;
            return strcmp(uuid, "GPU-1") ? 6 : 0;
        }
        int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *value) {
            *value = (*(unsigned long long *) device += 1500);
            return 0;
        }
        """
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    counter = NvmlCounter("GPU-1", str(library))
    assert counter() == 1.5
    assert counter() == 3.0
    assert NvmlCounter("GPU-2", str(library))() is None
    assert NvmlCounter("GPU-1", str(tmp_path / "none.so"))() is None
    assert NvmlCounter("GPU-1", ctypes.util.find_library("c") or "libc.so.6")() is None


def test_a_killed_run(tmp_path, monkeypatch):
    """Killed between two checkpoints, and run to its end by another process, with a price."""
    monkeypatch.setenv("CLIPMILL_DEVICE_PRICE", "3.60 EUR")
    process = subprocess.Popen(
        program("cost_drill", tmp_path), env=program_environment(OMP_NUM_THREADS="1")
    )
    try:
        while True:
            assert process.poll() is None, "it ended"
            sessions = read_sessions(str(tmp_path))
            has_state = (tmp_path / f"step-{2 * CHECKPOINT_EVERY:08d}.json").exists()
            if has_state and sessions[0].last_step % CHECKPOINT_EVERY > CHECKPOINT_EVERY // 2:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        killed = time.time()
        process.wait()
    finally:
        process.kill()
        process.wait()
    (at_kill,) = read_sessions(str(tmp_path))
    # What isn't recorded is less than an interval, but for a busy machine.
    assert 0 <= killed - (at_kill.started + at_kill.seconds) < INTERVAL_SECONDS + 10
    resumed = run_to_end(tmp_path)
    cost = read_cost(str(tmp_path))
    first, second = cost.sessions
    assert first.seconds == at_kill.seconds
    assert second.first_step == resumed
    assert resumed % CHECKPOINT_EVERY == 0
    assert second.last_step == STEPS
    assert cost.num_restarts == 1
    assert cost.lost_steps == first.lost_steps == max(first.last_step - resumed, 0)
    assert (0 < cost.lost_seconds < first.seconds) == (cost.lost_steps > 0)
    hours = (first.seconds * first.num_devices + second.seconds * second.num_devices) / 3600
    assert sum(cost.device_hours.values()) == pytest.approx(hours)
    assert cost.prices["EUR"] == pytest.approx(3.6 * hours)
    assert all("CPU core" in kind for kind in cost.device_hours)
