"""Networks whose answer is known, shared by the tests of process and samplers."""

import atexit
import gc
import logging
import os
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_core.runtime.device import cores
from diffusion_core.runtime.precision import choose_precision

# Workers of pytest-xdist share the cores: two of them with all threads each would wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

# Tests write and remove hundreds of thousands of small files; on a disk, those of some files take twice as long.
MEMORY = Path("/dev/shm")
LEAST_FREE, LEAST_MEMORY = 4 * 2**30, 16 * 2**30
FOLDER = MEMORY / f"diffusion-tests-{os.getpid()}"
outcomes: list[int] = []


def _remove_folder():
    """Remove what tests have left in memory, unless one has failed; then it stays until the tests run again."""
    if outcomes == [pytest.ExitCode.OK]:
        shutil.rmtree(FOLDER, ignore_errors=True)


if (
    not {"TMPDIR", "PYTEST_XDIST_WORKER"} & os.environ.keys()
    and os.access(MEMORY, os.W_OK)
    # Containers mount it so that no program in it may run, and tests write some.
    and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
    and shutil.disk_usage(MEMORY).free >= LEAST_FREE
    and os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >= LEAST_MEMORY
):
    for left in MEMORY.glob("diffusion-tests-*"):
        if not Path("/proc", left.name.rpartition("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    FOLDER.mkdir(exist_ok=True)
    # PostgreSQL's own user passes through it.
    FOLDER.chmod(0o755)
    os.environ["TMPDIR"] = tempfile.tempdir = str(FOLDER)
    atexit.register(_remove_folder)

# Tests speak to nobody, and what the developer's own runs use is not theirs.
for name in list(os.environ):
    if name.startswith(("DIFFUSION_", "MLFLOW_TRACKING_")):
        del os.environ[name]
for name, value in {
    "DO_NOT_TRACK": "1",
    # What is chosen by measuring differs from run to run beside other work, and with it the last bits of weights.
    "DIFFUSION_THREADS": str(torch.get_num_threads()),
    "HF_HUB_OFFLINE": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_TRACKING_URI": "",
    # Off in this project's servers too: seven more processes for each.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}.items():
    os.environ.setdefault(name, value)


LONGEST_SECONDS = 900

# Folders and files of tests/ by their marker; what is left are the laws and units of `make test-fast`.
TIERS = {
    "stack": ("stack",),
    "servers": (
        *("doctor", "flows", "registry", "storage", "docker/test_compose_servers.py"),
        *(
            "stages/test_promote.py",
            "stages/test_publish.py",
            "stages/test_publish_refused.py",
            "stages/test_rollback.py",
        ),
    ),
    "slow": (
        *(
            "benchmarks",
            "faults",
            "interop",
            "conformance/test_quickstart.py",
            "self_check",
            "lineage/test_traced_job.py",
            "stages",
            "supervision",
        ),
        *("runtime/test_compilation.py", "runtime/test_compile_cache.py", "runtime/test_compile_cache_keys.py"),
        *("test_command_line.py", "test_digits.py", "test_gpu_check.py", "test_notebooks.py", "test_readme.py"),
        *("test_site.py", "test_style.py", "training/test_recorded_steps.py", "training/test_trainer.py"),
        *("training/test_checkpoint.py", "docker/test_dockerfiles.py", "test_imports.py", "data/test_cluster.py"),
    ),
}


def pytest_configure(config):
    """Let a test that hangs fail, where the plugin is there; `make gpu-check` needs none."""
    if config.pluginmanager.hasplugin("timeout") and not config.option.timeout:
        config.option.timeout = LONGEST_SECONDS


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """Take twice as many processes as there are cores, because many tests wait for servers and other processes."""
    return 2 * cores()


def pytest_collection_modifyitems(items):
    """Mark the tiers, and begin with the longest files, so that no process has one of them left at the end."""
    here = Path(__file__).parent
    assert all((here / each).exists() for places in TIERS.values() for each in places)
    for item in items:
        place = item.path.relative_to(here)
        for marker, places in TIERS.items():
            if any(place.is_relative_to(each) for each in places):
                item.add_marker(marker)
    first = ("stack", "slow", "servers")
    items.sort(key=lambda item: next((i for i, name in enumerate(first) if item.get_closest_marker(name)), len(first)))


def pytest_sessionfinish(exitstatus):
    """Note whether a test has failed."""
    outcomes.append(exitstatus)


def pytest_collection_finish():
    """Keep the garbage collector from all that was imported, through which it would go again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def disk():
    """A folder on the checkout's filesystem, where `tmp_path` lies in memory."""
    cache = Path(__file__).parents[1] / ".cache"
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix="disk-") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _own_tracking_store():
    """MLflow sets this variable when it is told of a store, and whatever is started later would inherit it.

    What a fixture of a whole file sets is removed too, before the next file's fixtures begin.
    """
    os.environ["MLFLOW_TRACKING_URI"] = ""
    yield
    os.environ["MLFLOW_TRACKING_URI"] = ""


@pytest.fixture(autouse=True)
def _own_level_of_messages():
    """The command line sets it for its process, and what a later test hears would depend on the order of tests."""
    package = logging.getLogger("diffusion_core")
    before = package.level
    yield
    package.setLevel(before)


@pytest.fixture
def needs_bfloat16():
    """Skip where the processor cannot multiply bfloat16."""
    if choose_precision("auto", torch.device("cpu")).dtype != torch.bfloat16:
        pytest.skip("this processor has no bfloat16")


class Network(nn.Module):
    """A function of (x, t, x_self_cond) in the place of a network."""

    def __init__(self, function, channels=1, self_condition=False):
        super().__init__()
        self.function = function
        self.channels = self.out_dim = channels
        self.self_condition = self_condition

    def forward(self, x, t, x_self_cond=None):
        return self.function(x, t, x_self_cond)


def constant(value):
    """A network that always answers `value`."""
    return Network(lambda x, t, s: torch.full_like(x, value))
