"""A network that is trained in no time, by one thread."""

import pytest
import torch

TINY = {"size": 8, "dim": 8, "dim_mults": [1, 2], "batch": 4}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """Work as small as here takes many times as long with several threads on a busy machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
