"""What was compiled elsewhere or otherwise has another key, and keys that nobody uses go."""

import os
import shutil
import sys
import time
from pathlib import Path
from threading import Thread

import torch

from diffusion_core.runtime import compile_cache
from diffusion_core.runtime.compile_cache import LAST_USE, use_compile_cache

MONTH = 30 * 86400.0


def age(path, seconds):
    """Let a key have been used last so long ago."""
    long_ago = time.time() - seconds
    os.utime(path / LAST_USE, (long_ago, long_ago))


def test_a_key_is_a_file_name_that_tells_whose_it_is(key):
    path = key()
    assert path == key()
    assert set(path.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.+-_")
    assert path.name.startswith(f"torch-{torch.__version__}_python-{sys.version.split()[0]}_cpu-")


def test_another_pytorch_has_another_key(key, monkeypatch):
    before = key()
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert key().name.startswith("torch-2.99.0_")
    assert key() != before


def test_another_python_has_another_key(key, monkeypatch):
    before = key()
    monkeypatch.setattr(compile_cache.platform, "python_version", lambda: "3.99.0")
    assert key() != before


def test_each_gpu_has_its_key(tmp_path, monkeypatch):
    names = {}
    for name, capability in [("NVIDIA H100 80GB HBM3", (9, 0)), ("NVIDIA L4", (8, 9)), ("NVIDIA L4", (9, 0))]:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
        monkeypatch.setenv("TRITON_CACHE_DIR", "")
        names[name, capability] = use_compile_cache(tmp_path, torch.device("cuda", 0)).name
    assert len(set(names.values())) == 3
    assert "_NVIDIA-H100-80GB-HBM3-sm90_" in names["NVIDIA H100 80GB HBM3", (9, 0)]


def test_another_processor_of_the_same_name_has_another_key(key, monkeypatch):
    paths = set()
    for flags in ("avx2", "avx2 avx512f"):
        text = f"processor\t: 0\nmodel name\t: AMD EPYC\ncpu MHz\t\t: 2596.1\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
        monkeypatch.setattr(Path, "read_text", lambda *_, text=text, **__: text)
        paths.add(key())
    assert len(paths) == 2
    assert all("_cpu-AMD-EPYC_" in path.name for path in paths)


def test_a_processors_clock_is_no_part_of_the_key(key, monkeypatch):
    paths = set()
    for clock in ("2596.1", "3100.0"):
        text = f"processor\t: 0\nmodel name\t: AMD EPYC\ncpu MHz\t\t: {clock}\nflags\t\t: avx2\n\nprocessor\t: 1\n"
        monkeypatch.setattr(Path, "read_text", lambda *_, text=text, **__: text)
        paths.add(key())
    assert len(paths) == 1


def test_changed_code_has_another_key(key, monkeypatch, tmp_path):
    code = tmp_path / "networks"
    code.mkdir()
    (code / "unet.py").write_text("x = 1\n")
    monkeypatch.setattr(compile_cache, "COMPILED", (code,))
    paths = [key()]
    (code / "unet.py").write_text("x = 2\n")
    paths.append(key())
    (code / "unet.py").rename(code / "net.py")
    paths.append(key())
    assert len(set(paths)) == 3
    # What Python leaves beside the code is none.
    (code / "net.pyc").touch()
    assert key() == paths[-1]


def test_the_networks_are_part_of_the_code():
    files = {file.name for folder in compile_cache.COMPILED for file in folder.rglob("*.py")}
    assert {"unet.py", "compile_cache.py"} <= files


def test_keys_that_nobody_uses_go_and_the_others_stay(key, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.10.0")
    old = key()
    (old / "inductor").mkdir()
    (old / "inductor" / "kernel.so").touch()
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    newer = key()
    age(old, MONTH + 60)
    age(newer, MONTH - 60)
    monkeypatch.setattr(torch, "__version__", "2.12.0")
    current = key()
    assert set(current.parent.iterdir()) == {current, newer}


def test_the_current_key_stays_however_old_it_is_and_is_new_again(key, monkeypatch):
    current = key()
    (current / "inductor").mkdir()
    age(current, 10 * MONTH)
    aged = (current / LAST_USE).stat().st_mtime
    # As on a file system that keeps no times.
    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", lambda *_: None)
        assert key() == current
        assert (current / "inductor").is_dir()
    assert key() == current
    assert (current / LAST_USE).stat().st_mtime > aged


def test_folders_that_are_no_keys_stay(key, monkeypatch):
    current = key()
    for name in ("torch-sources", "photographs"):
        (current.parent / name).mkdir()
        os.utime(current.parent / name, (0, 0))
    (current.parent / "photographs" / LAST_USE).touch()
    age(current.parent / "photographs", 10 * MONTH)
    assert key() == current
    assert {path.name for path in current.parent.iterdir()} == {current.name, "torch-sources", "photographs"}


def test_processes_may_remove_the_same_keys_at_the_same_time(key, caplog):
    current = key()
    for number in range(20):
        old = current.parent / f"torch-{number}"
        (old / "inductor").mkdir(parents=True)
        for name in range(20):
            (old / "inductor" / str(name)).touch()
        (old / LAST_USE).touch()
        age(old, 2 * MONTH)
    failures = []

    def remove():
        try:
            compile_cache._remove_unused(current)
        except BaseException as error:
            failures.append(error)

    threads = [Thread(target=remove) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(current.parent.iterdir()) == [current]


def test_a_removal_that_was_cut_short_is_finished_by_the_next(key, monkeypatch):
    current = key()
    old = current.parent / "torch-1"
    (old / "inductor").mkdir(parents=True)
    (old / LAST_USE).touch()
    age(old, 2 * MONTH)
    removed = []
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, **_: removed.append(path.name))
        key()
    # The marker is in the folder that goes last.
    assert removed == ["inductor", "triton", "torch-1"]
    key()
    assert not old.exists()
