"""The weekly flow fails if something stays rotten, and passes once it is repaired."""

import shutil
import threading

import pytest
import torch

from diffusion_core.training.checkpoint import Checkpoint, save_checkpoint
from flows.checkout import only_run
from flows.failure import StageFailed
from flows.upkeep import upkeep
from tests.registry.projects import empty_store

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_the_weekly_run_waits_for_another_in_its_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begun, release = threading.Event(), threading.Event()

    def works():
        with only_run():
            begun.set()
            release.wait(60)

    other = threading.Thread(target=works)
    other.start()
    assert begun.wait(60)
    threading.Timer(1.0, release.set).start()
    with only_run(60.0):
        assert release.is_set()
    other.join()
    # The control: without patience it is refused.
    begun.clear()
    release.clear()
    other = threading.Thread(target=works)
    other.start()
    assert begun.wait(60)
    with pytest.raises(StageFailed, match="another run works in "), only_run():
        pass
    release.set()
    other.join()


def test_what_rotted_fails_the_weekly_run_until_it_is_repaired_or_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (tmp_path / "mlflow.db").write_bytes(empty_store())
    for step in (1, 2):
        path = save_checkpoint(tmp_path / ".checkpoints/a", Checkpoint(step, {"model": {"w": torch.ones(9)}}, {}))
    upkeep(repair=False)
    (path / "state.json").write_bytes(b"{}")
    with pytest.raises(StageFailed, match="verify ended with exit code 1; its log says why"):
        upkeep(repair=False)
    # It is set aside, and the one before it is used.
    for _ in range(2):
        with pytest.raises(StageFailed, match="verify ended with exit code 1"):
            upkeep()
    # It is lost, so the flow fails until somebody has seen and removed it.
    shutil.rmtree(path.with_name(f"{path.name}.damaged-0"))
    upkeep()
