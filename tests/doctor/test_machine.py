import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffusion_core.config.environment import Environment
from diffusion_core.doctor import disks as disks_check
from diffusion_core.doctor import machine
from diffusion_core.doctor.disks import disks, reflinks
from diffusion_core.doctor.machine import memory, processors
from tests.doctor.findings import is_silent, worst
from tests.faults.disks import small_disk

ENVIRONMENT = Environment(threads=1)


def test_a_busy_process_is_named(monkeypatch):
    monkeypatch.setattr(machine, "BUSY_CORES", 0.3)
    # Beside other tests it has little of the time, and is not among the first.
    monkeypatch.setattr(machine, "BUSY_SHARE", 0.01)
    monkeypatch.setattr(machine, "MOST_SHOWN", 1000)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        found = [each for each in processors(ENVIRONMENT) if "others keep" in each.sentence]
        process.kill()
    assert [(each.verdict, f"process {process.pid}" in each.sentence) for each in found] == [("warning", True)]
    assert not any(f"process {process.pid}" in each.sentence for each in processors(ENVIRONMENT))


def files(root, contents):
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


@pytest.mark.parametrize(
    "limits",
    [{"cpu.max": "50000 100000\n"}, {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}],
)
def test_threads_beyond_the_containers_share_are_found(monkeypatch, tmp_path, limits):
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    files(tmp_path / "cgroup", limits)
    found = [each.remedy for each in processors(Environment(threads=4)) if "threads" in each.sentence]
    assert found == ["set DIFFUSION_THREADS=1"]
    assert not any("threads" in each.sentence for each in processors(Environment(threads=1)))
    files(tmp_path / "cgroup", {name: "max 100000\n" if name == "cpu.max" else "-1\n" for name in limits})
    assert not any("threads" in each.sentence for each in processors(Environment(threads=1)))


def test_a_variable_that_leaves_cores_idle_is_found(monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 2 * torch.get_num_threads())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert any(each.remedy == "unset it, or raise it" for each in processors(Environment(threads="auto")))
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert not any("OMP_NUM_THREADS" in each.sentence for each in processors(Environment(threads="auto")))


@pytest.mark.parametrize(("limit", "verdict"), [("LEAST_MEMORY", "problem"), ("LITTLE_MEMORY", "warning")])
def test_little_memory_is_found(monkeypatch, limit, verdict):
    monkeypatch.setattr(machine, limit, 2**60)
    assert worst(memory, ENVIRONMENT).verdict == verdict


def test_a_disk_that_is_full_or_read_only_is_found(tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", megabytes=120) as disk:
        environment = Environment(checkpoints=disk.seen / "checkpoints")
        monkeypatch.setattr(disks_check, "LITTLE_BYTES", disks_check.LEAST_BYTES)
        assert is_silent(disks, environment)
        disk.fill(left=10**6)
        found = worst(disks, environment)
        assert (found.verdict, found.sentence[-27:]) == ("problem", "MiB are free for checkpoints"[-27:])
        disk.make_room()
        disk.mount("ro")
        found = worst(disks, environment)
        assert found.sentence.startswith("checkpoints cannot be written in ")
        assert found.sentence.endswith(": its filesystem is read-only")


def test_used_up_inodes_are_found(monkeypatch):
    monkeypatch.setattr(disks_check, "LITTLE_BYTES", 0)
    monkeypatch.setattr(disks_check, "LEAST_BYTES", 0)
    monkeypatch.setattr(disks_check, "LITTLE_INODES", 2**62)
    assert {each.verdict for each in disks(ENVIRONMENT)} == {"problem"}
    assert any("inodes" in each.sentence for each in disks(ENVIRONMENT))


def test_the_room_of_dvcs_cache_is_named(folder):
    assert not [*reflinks(ENVIRONMENT)]
    Path(".dvc").mkdir()
    (found,) = reflinks(ENVIRONMENT)
    assert found.sentence.startswith("DVC's cache ")
