"""What a flow makes of a stage's output and time: a bar on Prefect's pages, and DIFFUSION_MAX_HOURS."""

from pathlib import Path

import pytest
from prefect import flow, task

from diffusion_core.stages.moved import moved_by
from flows import progress, tasks
from flows.failure import StageFailed
from tests.flows.runs import artifacts

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.servers]

LINES = """
import sys
print("train: 10 of 40 images, 5 images/s, 6 s left", flush=True)
print("train: 3 of 5 images are new", file=sys.stderr, flush=True)
print("train: 30 of 40 images, 5 images/s, 2 s left", flush=True)
sys.exit({code})
"""


@task(name="stage", task_run_name="stage")
def stage():
    tasks.run_module("stage", ["child"])


@flow(name="one-stage")
def one_stage():
    stage()


def shown(tmp_path, monkeypatch, code):
    """Run a stage, and return the data and description of its bar."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "child.py").write_text(LINES.format(code=code))
    state = one_stage(return_state=True)
    assert state.is_completed() == (code == 0)
    found = artifacts(state.state_details.flow_run_id)
    bars = [each for each in found.values() if each["type"] == "progress"]
    return [(each["key"], each["data"], each["description"]) for each in bars]


@pytest.mark.parametrize(
    ("seconds_between", "value"), [(progress.SECONDS_BETWEEN, 10), (0.0, 30)], ids=["often", "at once"]
)
def test_a_bar_shows_the_progress_of_a_stage_and_is_not_sent_with_each_line(
    tmp_path, monkeypatch, seconds_between, value
):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN", seconds_between)
    ((key, data, description),) = shown(tmp_path, monkeypatch, code=1)
    assert (key, data) == ("stage-progress", 2.5 * value)
    assert description.startswith(f"train: {value} of 40 images")


def test_the_bar_of_a_stage_that_has_ended_is_full(tmp_path, monkeypatch):
    assert shown(tmp_path, monkeypatch, code=0) == [("stage-progress", 100.0, "ended")]


@pytest.mark.parametrize("code", [0, 1])
def test_a_stage_has_the_bytes_that_the_machine_moved_meanwhile(tmp_path, monkeypatch, code):
    counted = iter((100, 107, 150, 155))
    monkeypatch.setattr(tasks, "network_bytes", lambda: {"eth0": next(counted)})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "child.py").write_text(LINES.format(code=code))

    @flow(name="two-stages")
    def two_stages():
        assert stage(return_state=True).is_completed() == stage(return_state=True).is_completed() == (code == 0)

    run = two_stages(return_state=True)
    assert run.is_completed()
    assert moved_by(str(run.state_details.flow_run_id)) == {"stage": 7 + 5}


def test_a_server_that_does_not_answer_costs_the_bar_alone(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(progress, "SECONDS_TO_ANSWER", 1e-9)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN", 0.0)
    shown(tmp_path, monkeypatch, code=0)
    assert caplog.text.count("the bar of progress stays as it is") == 1


STOPPABLE = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("checkpoint").touch(), sys.exit(143)))
time.sleep(4)
"""


@pytest.mark.parametrize("hours", ["0.0005", None])
def test_a_run_ends_after_its_hours_with_a_checkpoint_and_one_sentence(tmp_path, monkeypatch, hours):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "child.py").write_text(STOPPABLE)
    if hours is None:
        # The control: the stage would end by itself, later.
        one_stage()
        assert not Path("checkpoint").exists()
        return
    monkeypatch.setenv("DIFFUSION_MAX_HOURS", hours)
    sentence = "^stage: the run has used the 0.0005 hours of DIFFUSION_MAX_HOURS: set more, or start it again"
    with pytest.raises(StageFailed, match=sentence) as caught:
        one_stage()
    assert caught.value.is_mistake
    assert not caught.value.is_transient
    assert Path("checkpoint").exists()


def test_hours_that_are_no_number_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFUSION_MAX_HOURS", "night")
    with pytest.raises(StageFailed, match="^DIFFUSION_MAX_HOURS is 'night': it must be a number$"):
        one_stage()
