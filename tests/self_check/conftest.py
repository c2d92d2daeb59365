"""Networks are compiled by a compiler of the test's choice."""

import pytest
import torch
from torch import nn

COMPILE = nn.Module.compile


@pytest.fixture
def by(monkeypatch):
    """Let networks be compiled by another compiler."""

    def choose(backend):
        monkeypatch.setattr(nn.Module, "compile", lambda self, **_: COMPILE(self, backend=backend, dynamic=False))
        torch._dynamo.reset()

    yield choose
    torch._dynamo.reset()
