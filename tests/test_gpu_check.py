"""What checks a GPU is kept working where there is none: its quick tests run on the CPU."""

import json
import os
import subprocess
import sys

QUICK = ("data", "memory", "samplers", "update")


def test_the_gpu_checks_pass_on_a_cpu_and_write_their_table(tmp_path):
    table = tmp_path / "gpu-check.json"
    files = [f"tests/gpu/test_{name}.py" for name in QUICK]
    variables = {"GPU_CHECK_DEVICE": "cpu", "GPU_CHECK_JSON": str(table)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    rows = json.loads(table.read_text(encoding="utf-8"))["rows"]
    assert len(rows) > 25
    assert all(row["passed"] for row in rows)


def test_a_check_that_fails_is_a_failure(tmp_path):
    """The control: float32 is asked for, and bfloat16 computes."""
    broken = "import torch, sys, pytest; torch.set_default_dtype(torch.float32);"
    broken += "from diffusion_core.samplers.ddim import DDIM; step = DDIM.step;"
    broken += "DDIM.step = lambda *a: step(*a) + 0.01 * torch.is_inference_mode_enabled();"
    broken += "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'tests/gpu/test_samplers.py']))"
    variables = {"GPU_CHECK_DEVICE": "cpu", "GPU_CHECK_JSON": str(tmp_path / "gpu-check.json")}
    done = subprocess.run(
        [sys.executable, "-c", broken], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    print(done.stdout[-1500:])
    assert done.returncode == 1
