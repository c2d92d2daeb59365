"""What torch.compile has built is built once, as long as DIFFUSION_COMPILE_CACHE is kept."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diffusion_core.runtime.compile_cache import LAST_USE, use_compile_cache
from tests.runtime.conftest import CPU, VARIABLES

CHECKOUT = Path(__file__).parents[2]

# An optimizer comes first, because it makes PyTorch write its own default into the environment.
CHILD = """
import json, logging, os, sys
from pathlib import Path
import torch
from torch._dynamo.utils import counters
from diffusion_core.runtime.compile_cache import use_compile_cache

logging.basicConfig()
torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])
path = use_compile_cache(Path(sys.argv[1]), torch.device("cpu"))
value = torch.compile(lambda x: (x.sin() * 2 + x).sum())(torch.ones(8)).item()
print(json.dumps({"path": path and str(path), "value": value, "counters": counters["inductor"], "environment": {
    name: os.environ.get(name) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}}))
"""


def compile_in_a_process(folder, current, **variables):
    """Compile a tiny function in a new process; return what it printed and its log."""
    current.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    # No trial of the processor, and no precompiled header in the temporary folder: both take longer than the function.
    environment |= {"TORCHINDUCTOR_VEC_ISA_OK": "1", "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0"}
    environment |= {"PYTHONPATH": str(CHECKOUT), **variables}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)],
        cwd=current,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["value"] == pytest.approx(8 * (2 * torch.ones(()).sin().item() + 1))
    return result, done.stderr


def results(folder):
    """Return the files that a compilation leaves."""
    return {file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock" and file.name != LAST_USE}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A folder in which a first process compiled, in a clone that is gone, and what that process printed."""
    parent = tmp_path_factory.mktemp("compiled")
    result, _ = compile_in_a_process("../cache", parent / "first")
    shutil.rmtree(parent / "first")
    return parent / "cache", result


def test_results_lie_in_the_folder_wherever_a_process_was_started(compiled):
    folder, first = compiled
    path = Path(first["path"])
    # It was given as a relative one.
    assert path.parent == folder.resolve()
    assert first["environment"] == {
        "TORCHINDUCTOR_CACHE_DIR": str(path / "inductor"),
        "TRITON_CACHE_DIR": str(path / "triton"),
    }
    assert first["counters"]["fxgraph_cache_miss"] == 1
    assert {file.suffix for file in results(folder)} >= {".so", ".cpp", ".py"}


def test_a_second_process_compiles_nothing_in_another_clone(compiled, tmp_path):
    folder, _ = compiled
    before = results(folder)
    second, _ = compile_in_a_process(folder, tmp_path / "second")
    assert second["counters"]["fxgraph_cache_hit"] == 1
    assert "fxgraph_cache_miss" not in second["counters"]
    assert results(folder) == before


def test_another_folder_has_nothing_of_it(compiled, tmp_path):
    other, _ = compile_in_a_process(tmp_path / "other", tmp_path)
    assert other["counters"]["fxgraph_cache_miss"] == 1
    assert "fxgraph_cache_hit" not in other["counters"]


def test_a_folder_that_cannot_be_used_is_told_and_compiling_still_works(tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "cache"
    result, log = compile_in_a_process(folder, tmp_path, TMPDIR=str(tmp_path))
    assert result["path"] is None
    assert f"DIFFUSION_COMPILE_CACHE: {folder} cannot be used (Not a directory): kernels are kept in PyTorch's" in log
    assert log.count("DIFFUSION_COMPILE_CACHE") == 1
    # PyTorch's own.
    assert Path(result["environment"]["TORCHINDUCTOR_CACHE_DIR"]).parent == tmp_path
    assert result["counters"]["fxgraph_cache_miss"] == 1


def refuse(number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize(
    ("place", "name", "instead", "reason"),
    [
        (os, "fsync", refuse(errno.ENOSPC), "No space left on device"),
        (os, "fsync", refuse(errno.EDQUOT), "Disk quota exceeded"),
        (Path, "mkdir", refuse(errno.EROFS), "Read-only file system"),
        (Path, "touch", refuse(errno.EACCES), "Permission denied"),
        (tempfile, "NamedTemporaryFile", refuse(errno.EROFS), "Read-only file system"),
        (os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC), "it is mounted with noexec"),
    ],
    ids=["full", "quota", "folder", "marker", "files", "noexec"],
)
def test_a_full_or_locked_folder_leaves_pytorchs_own(key, monkeypatch, caplog, tmp_path, place, name, instead, reason):
    with monkeypatch.context() as patch:
        patch.setattr(place, name, instead)
        assert key() is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(
        f"DIFFUSION_COMPILE_CACHE: {tmp_path / 'cache'} cannot be used ({reason}): kernels are kept in PyTorch's"
    )
    assert [os.environ[name] for name in VARIABLES] == ["", ""]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc")
def test_a_place_where_nobody_can_write_is_told(monkeypatch, caplog):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    assert use_compile_cache(Path("/proc/cache"), CPU) is None
    assert "DIFFUSION_COMPILE_CACHE: /proc/cache cannot be used (" in caplog.text


@pytest.mark.parametrize("name", ["my cache", "it's", "tab\there"])
def test_a_path_that_breaks_the_compilers_command_is_not_used(tmp_path, monkeypatch, caplog, name):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert use_compile_cache(tmp_path / name, CPU) is None
    assert "white space" in caplog.text
    assert not list(tmp_path.iterdir()), "a folder that is refused is not made"


def test_nothing_but_the_marker_stays_of_the_check(key):
    assert [file.name for file in key().iterdir()] == [LAST_USE]


def test_the_users_own_setting_wins_and_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "hers"))
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    assert use_compile_cache(tmp_path / "cache", CPU) == tmp_path / "hers"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "hers")
    assert "TRITON_CACHE_DIR" not in os.environ
    assert not (tmp_path / "cache").exists()


def test_the_users_own_folder_of_triton_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "hers"))
    path = use_compile_cache(tmp_path / "cache", CPU)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(path / "inductor")
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "hers")


def test_pytorch_keeps_compiled_graphs_by_itself():
    # In other words: the two variables are enough.
    code = (
        "import torch._functorch.config, torch._inductor.config;"
        "assert torch._inductor.config.fx_graph_cache and torch._functorch.config.enable_autograd_cache"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR_")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
