import subprocess

import pytest
import torch

from diffusion_core.config.environment import Environment
from diffusion_core.doctor import devices
from diffusion_core.doctor.devices import computation, driver
from diffusion_core.networks import eager_cpu
from diffusion_core.self_check import device as device_check
from diffusion_core.self_check.comparison import Verdict
from diffusion_core.self_check.device import check_device
from tests.doctor.findings import is_silent, worst

ENVIRONMENT = Environment()


def test_a_device_that_computes_wrongly_is_found(monkeypatch):
    assert is_silent(computation, ENVIRONMENT)
    backward = eager_cpu._RMSNorm.backward

    def wrong(ctx, *gradients):
        dx, da, db = backward(ctx, *gradients)
        return (dx, da, db) if dx.dtype == torch.float64 else (dx * 1.05, da, db)

    monkeypatch.setattr(eager_cpu._RMSNorm, "backward", staticmethod(wrong))
    found = [each for each in computation(ENVIRONMENT) if each.verdict == "problem"]
    assert any("FAILED, the gradient of model." in each.sentence for each in found)


def test_a_gpu_without_triton_is_found_with_what_happens_then(monkeypatch):
    monkeypatch.setattr(devices, "choose_compiled", lambda *_: True)
    monkeypatch.setattr(devices, "compiler_problem", lambda _: "Triton is not installed")
    found = worst(computation, ENVIRONMENT)
    assert "cannot run (Triton is not installed); training runs without, slower" in found.sentence


def test_a_device_that_fails_does_not_hide_what_was_found_on_others(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy")
        yield

    sound, checks = devices.check_device, [fails]
    monkeypatch.setattr(devices, "_devices", lambda: iter((torch.device("cpu"), torch.device("cpu"))))
    monkeypatch.setattr(devices, "check_device", lambda *a, **k: (checks.pop() if checks else sound)(*a, **k))
    found = [*computation(ENVIRONMENT)]
    assert "cannot run (CUDA error: all CUDA-capable devices are busy)" in found[1].sentence
    assert any("float64: passed" in each.sentence for each in found)


def test_every_part_of_a_step_is_in_the_network_that_devices_are_checked_by(monkeypatch):
    seen = []
    monkeypatch.setattr(device_check, "compare", lambda way, reference, *_: seen.append(reference) or True)
    list(check_device(torch.device("cpu"), torch.float32, compiled=False, replayed=False))
    assert {"the loss", "the output"} < set(seen[0])
    assert all(float(each.norm()) > 0.0 for each in seen[0].values())


def test_every_gpu_is_checked_where_gpus_are_asked_for(monkeypatch):
    of_machine = [torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)]
    monkeypatch.setattr(devices, "_devices", lambda: iter(of_machine))
    monkeypatch.setattr(devices, "choose_dtype", lambda *_: "float32")
    monkeypatch.setattr(devices, "_name", lambda _: "a GPU")
    monkeypatch.setattr(devices, "_verdicts", lambda device, _: iter([Verdict(f"on {device}", True)]))
    found = [each.sentence.split()[0] for each in computation(Environment(device="cuda"))]
    assert found == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU that PyTorch can use")
def test_a_gpu_that_pytorch_cannot_use_is_found(tmp_path, monkeypatch):
    assert is_silent(driver, ENVIRONMENT)
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100, 535.1, 10 MiB, 81559 MiB'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert subprocess.run(["nvidia-smi"], check=True).returncode == 0
    found = worst(driver, ENVIRONMENT)
    assert "PyTorch" in found.sentence
    assert "cannot use NVIDIA H100 with driver 535.1, 10 MiB of 81559 MiB in use" in found.sentence
    program.write_text("#!/bin/sh\nexit 9\n")
    assert is_silent(driver, ENVIRONMENT)
