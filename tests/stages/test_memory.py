"""Free memory is the machine's, or what the limit of its container leaves."""

import psutil
import pytest

from diffusion_core.stages import memory


def test_it_is_the_machines(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "none")
    assert 0 < memory.free_memory() <= psutil.virtual_memory().total


@pytest.mark.parametrize(("limit", "free"), [("1000000\n", 400_000), ("max\n", None)])
def test_a_containers_limit_counts(tmp_path, monkeypatch, limit, free):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(limit)
    (tmp_path / "memory.current").write_text("600000\n")
    found = memory.free_memory()
    assert found == free if free else found > 10**7
