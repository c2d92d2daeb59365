import json
import subprocess
import sys

import pytest
import torch

from diffusion_core.config.environment import Environment
from diffusion_core.networks import eager_cpu
from diffusion_core.runtime.device import why_no_cuda
from diffusion_core.self_check import device as device_check
from diffusion_core.self_check.comparison import Verdict
from diffusion_core.self_check.device import check_device
from diffusion_core.stages import doctor


def test_a_sound_machine_is_told_so_in_a_table_and_in_json(tmp_path):
    command = [sys.executable, "-m", "diffusion_core", "doctor"]
    table = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    assert f"torch {torch.__version__}" in table[0]
    if not torch.cuda.is_available():
        assert table.pop(1).startswith("no CUDA GPU: ")
    assert table[1].startswith("cpu ")
    assert "beside a CPU's float64: passed" in table[1]
    assert table[-1] == f"{len(table) - 2} of {len(table) - 2} checks passed"
    checks = json.loads(
        subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    )["checks"]
    assert len(checks) == len(table) - 2
    assert all(check["passed"] for check in checks)


def test_a_device_that_computes_wrongly_is_told_and_the_exit_code_is_1(monkeypatch, capsys):
    backward = eager_cpu._RMSNorm.backward

    def wrong(ctx, *gradients):
        dx, da, db = backward(ctx, *gradients)
        return (dx, da, db) if dx.dtype == torch.float64 else (dx * 1.05, da, db)

    monkeypatch.setattr(eager_cpu._RMSNorm, "backward", staticmethod(wrong))
    with pytest.raises(SystemExit) as left:
        doctor.run(Environment())
    assert left.value.code == 1
    printed = capsys.readouterr().out
    assert "FAILED, the gradient of model." in printed
    assert "checks failed" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused(tmp_path):
    variables = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "DIFFUSION_DEVICE": "cuda"}
    command = [sys.executable, "-m", "diffusion_core", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=variables)
    assert done.returncode == 2
    assert f"error: DIFFUSION_DEVICE is cuda, and {why_no_cuda()}: set it to auto" in done.stderr


def test_a_gpu_without_triton_is_told_with_what_happens_then(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "choose_compiled", lambda *_: True)
    monkeypatch.setattr(doctor, "compiler_problem", lambda _: "Triton is not installed")
    with pytest.raises(SystemExit):
        doctor.run(Environment())
    assert "cannot run (Triton is not installed); training runs without, slower" in capsys.readouterr().out


def test_a_device_that_fails_does_not_hide_what_was_found_on_others(monkeypatch, capsys):
    def fails(*_, **__):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy")
        yield

    sound = doctor.check_device
    monkeypatch.setattr(doctor, "_devices", lambda: iter((torch.device("cpu"), torch.device("cpu"))))
    monkeypatch.setattr(doctor, "check_device", lambda *a, **k: (checks.pop() if checks else sound)(*a, **k))
    checks = [fails]
    with pytest.raises(SystemExit):
        doctor.run(Environment())
    printed = capsys.readouterr().out
    assert "cannot run (CUDA error: all CUDA-capable devices are busy)" in printed
    assert "float64: passed" in printed


def test_every_part_of_a_step_is_in_the_network_that_devices_are_checked_by(monkeypatch):
    seen = []
    monkeypatch.setattr(device_check, "compare", lambda way, reference, *_: seen.append(reference) or True)
    list(check_device(torch.device("cpu"), torch.float32, compiled=False, replayed=False))
    assert {"the loss", "the output"} < set(seen[0])
    assert all(float(each.norm()) > 0.0 for each in seen[0].values())


def test_every_gpu_is_checked_where_gpus_are_asked_for(monkeypatch, capsys):
    devices = [torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)]
    monkeypatch.setattr(doctor, "_devices", lambda: iter(devices))
    monkeypatch.setattr(doctor, "choose_device", lambda _: devices[1])
    monkeypatch.setattr(doctor, "_name", lambda _: "a GPU")
    monkeypatch.setattr(doctor, "_verdicts", lambda device, _: iter([Verdict(f"on {device}", True)]))
    doctor.run(Environment(device="cuda"))
    lines = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split()[0] for line in lines] == ["cuda:0", "cuda:1", "2"]
