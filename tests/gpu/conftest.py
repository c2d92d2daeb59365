"""The device that is checked: a CUDA GPU, or nothing.

    make gpu-check GPU_PYTHON=python3                  from the checkout, by a Python with torch, numpy and pytest
    GPU_CHECK_DEVICE=cpu python -m pytest tests/gpu    the same tests on the CPU, to try them out with smaller networks

Ends with a table, which is also in gpu-check.json (GPU_CHECK_JSON=path) after each row. CIFAR=folder lets the tests of
learning take the images of a folder, and GPU_CHECK_STEPS=20 fewer steps.
"""

import gc
import os
import time
from pathlib import Path

import pytest
import torch

from tests.gpu.record import Record, Row, paths

HERE = Path(__file__).parent
# A run has more networks than a training: each region is compiled for each shape, precision and mode.
RECOMPILE_LIMIT = 2048


def chosen_device() -> torch.device | None:
    """Return the device that GPU_CHECK_DEVICE names, else the GPU, or None where it cannot be used."""
    name = os.environ.get("GPU_CHECK_DEVICE", "cuda")
    return None if name.startswith("cuda") and not torch.cuda.is_available() else torch.device(name)


DEVICE = chosen_device()
RECORD = Record(DEVICE)
NO_DEVICE = f"no CUDA GPU: PyTorch {torch.__version__} finds none (GPU_CHECK_DEVICE=cpu tries the tests on the CPU)"


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


def pytest_sessionstart():
    if "GPU_CHECK_REQUIRED" in os.environ:
        # What an earlier run has written is not of this one.
        for path in paths():
            path.unlink(missing_ok=True)


def pytest_runtest_setup(item):
    if DEVICE is None:
        pytest.skip(NO_DEVICE)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """A test fails at its end if a row of it did, so that the rows after that one are measured too."""
    result = yield
    if failed := RECORD.failed(item.nodeid):
        pytest.fail("\n".join("  ".join(row.cells()) for row in failed), pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if DEVICE is not None and report.skipped:
        RECORD.skipped[item.name] = str(call.excinfo.value) if call.excinfo else ""
    if report.failed and not RECORD.failed(item.nodeid):
        problem = " ".join(str(call.excinfo.value).split())[:300] if call.excinfo else ""
        RECORD.add(Row(item.name, None, None, False, report.duration, problem, item.nodeid))
    return report


def pytest_sessionfinish(session):
    if DEVICE is not None:
        RECORD.write(finished=True)
    elif "GPU_CHECK_REQUIRED" in os.environ:
        # `make gpu-check` was asked for a GPU: that nothing was checked is no success.
        session.exitstatus = 2


def pytest_terminal_summary(terminalreporter):
    if DEVICE is None and "GPU_CHECK_REQUIRED" in os.environ:
        terminalreporter.write_line(f"error: nothing was checked: {NO_DEVICE}")
    if RECORD.rows:
        terminalreporter.section("GPU check")
        terminalreporter.write_line("\n".join(RECORD.table()))


@pytest.fixture
def record(request):
    """Add a row to the table: `record(name, measured, limit)`."""
    began = time.monotonic()

    def add(name, measured, limit, *, least=False, note=""):
        nonlocal began
        measured, now = float(measured), time.monotonic()
        passed = measured >= limit if least else measured <= limit
        RECORD.add(Row(name, measured, float(limit), passed, now - began, note, request.node.nodeid, least))
        began = now

    return add


@pytest.fixture(scope="session")
def device():
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch._dynamo.config.accumulated_recompile_limit = RECOMPILE_LIMIT
    return DEVICE


@pytest.fixture
def graphs(device):
    """Skip where there are no CUDA graphs."""
    if device.type != "cuda":
        pytest.skip("a CUDA graph needs a CUDA GPU")


@pytest.fixture(autouse=True)
def _exact_float32():
    """Float32 means float32, not TF32; and what one test leaves on the device is gone before the next."""
    if DEVICE is None or DEVICE.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    torch.backends.cuda.matmul.allow_tf32 = matmul
    gc.collect()
    torch.cuda.empty_cache()
