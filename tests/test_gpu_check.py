"""What checks a GPU is kept working where there is none: its quick tests run on the CPU."""

import json
import os
import subprocess
import sys

QUICK = ("data", "memory", "samplers", "update")

# The device's images, which are drawn after the CPU's, are brighter by a thousandth.
BROKEN = """
import sys
from itertools import count
import pytest
from diffusion_core import GaussianDiffusion

sample, calls = GaussianDiffusion.sample, count()

def brighter(self, *arguments, **options):
    images = sample(self, *arguments, **options)
    return images * 0.998 + 0.001 if next(calls) % 2 else images

GaussianDiffusion.sample = brighter
sys.exit(pytest.main(sys.argv[1:]))
"""


def checked(table, program, *files):
    """Run files of the GPU checks on the CPU; return the exit code and the rows of the table."""
    done = subprocess.run(
        [sys.executable, *program, "-q", "-p", "no:cacheprovider", *(f"tests/gpu/test_{name}.py" for name in files)],
        env={**os.environ, "GPU_CHECK_DEVICE": "cpu", "GPU_CHECK_JSON": str(table)},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout[-3000:])
    return done.returncode, json.loads(table.read_text(encoding="utf-8"))["rows"]


def test_the_gpu_checks_pass_on_a_cpu_and_write_their_table(tmp_path):
    code, rows = checked(tmp_path / "gpu-check.json", ("-m", "pytest"), *QUICK)
    assert code == 0
    assert len(rows) > 25
    assert all(row["passed"] for row in rows)


def test_images_that_differ_by_a_thousandth_fail_the_check(tmp_path):
    code, rows = checked(tmp_path / "gpu-check.json", ("-c", BROKEN), "samplers")
    assert code == 1
    drawn = [row for row in rows if row["name"].endswith(("guidance: pixel", "network: pixel"))]
    assert len(drawn) == 11
    assert not any(row["passed"] for row in drawn)
    assert all(5e-4 < row["measured"] < 2e-3 for row in drawn)


def test_the_checks_need_no_plugin_of_pytest():
    command = [sys.executable, "-m", "pytest", "tests/gpu", "--collect-only", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
