"""What belongs to a process: its number of threads, and the key under which it keeps compiled code."""

import pytest
import torch

from diffusion_core.runtime.compile_cache import use_compile_cache

CPU = torch.device("cpu")
VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@pytest.fixture
def key(tmp_path, monkeypatch):
    """Return the key that is used now, in a process where nobody has set PyTorch's variables."""

    def use():
        for name in VARIABLES:
            # First set, so that what the call sets goes with the test.
            monkeypatch.setenv(name, "")
        return use_compile_cache(tmp_path / "cache", CPU)

    return use


@pytest.fixture(autouse=True)
def _own_number_of_threads():
    """PyTorch keeps the number for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
