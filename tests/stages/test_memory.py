"""Free memory is the machine's, at most the limit of its container."""

import psutil
import pytest

from diffusion_core.stages import memory


def test_it_is_the_machines(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "none")
    assert 0 < memory.free_memory() <= psutil.virtual_memory().total


@pytest.mark.parametrize(("limit", "free"), [("1000000\n", 1_000_000), ("max\n", None)])
def test_a_containers_limit_counts(tmp_path, monkeypatch, limit, free):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(limit)
    found = memory.free_memory()
    assert found == free if free else found > 10**7
