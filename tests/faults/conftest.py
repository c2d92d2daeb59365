"""The digits of the stages' tests, and the store of the storage's."""

import sys

import pytest

from diffusion_core.__main__ import main
from tests.faults.hostile import MARKER, sentence
from tests.stages.conftest import digits, environment, project
from tests.storage.conftest import admin, bucket, proxy, server

__all__ = ["admin", "bucket", "digits", "environment", "project", "proxy", "server"]


@pytest.fixture
def is_refused(monkeypatch, capsys):
    """Return a function that runs a command, which must end with one sentence, and returns the sentence."""
    monkeypatch.setenv("DIFFUSION_DEVICE", "cpu")
    monkeypatch.setenv("DIFFUSION_PRECISION", "float32")

    def refuse(folder, *arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["diffusion", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        assert not (folder / MARKER).exists()
        return sentence(left.value.code, capsys.readouterr().err)

    return refuse
