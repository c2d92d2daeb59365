"""What the flow says and leaves where it is killed, the system kills a stage, or the disk refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from prefect.settings import PREFECT_API_URL

from diffusion_core.stages.paths import PARAMS_BEFORE
from diffusion_core.supervision.child import killed
from flows.checkout import OVERRIDDEN, PARAMS, only_run, params_kept
from flows.failure import StageFailed
from flows.pipeline import pipeline
from tests.faults.commands import wait_for
from tests.faults.disks import small_disk
from tests.flows.repository import commit, ran

pytestmark = pytest.mark.usefixtures("prefect_server")

CHECKOUT = str(Path(__file__).parents[2])
FLOW = [sys.executable, "-m", "flows.pipeline"]
# A stage that says who it is, and works on until it is ended.
WORKS = "import os, time; open('pid.tmp', 'w').write(str(os.getpid())); os.rename('pid.tmp', 'pid'); time.sleep(60)"


def variables(**more):
    return {**os.environ, "PYTHONPATH": CHECKOUT, "PREFECT_API_URL": PREFECT_API_URL.value(), **more}


def lives(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals that a parent has died")
def test_after_a_flow_that_was_killed_its_stage_ends_and_the_next_run_proceeds(project):
    (project / "on_prepare.py").write_text(WORKS)
    process = subprocess.Popen(FLOW, env=variables(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for((project / "pid").exists)
    family = psutil.Process(process.pid).children(recursive=True)
    assert int((project / "pid").read_text()) in {each.pid for each in family}
    # The control: as long as the flow lives, another run is refused.
    with pytest.raises(StageFailed, match="another run works in"):
        pipeline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(map(lives, family)), 30.0)
    (project / "on_prepare.py").unlink()
    ran(project)
    pipeline()
    assert [stage for stage, _ in ran(project)][:2] == ["ingest", "prepare"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals that a parent has died")
def test_overrides_of_a_flow_that_was_killed_are_for_that_run_alone(project, caplog):
    params = project / PARAMS
    params.write_text("train: {seed: 0}\n")
    (project / "on_prepare.py").write_text(WORKS)
    commit(project)
    program = "from flows.pipeline import pipeline; pipeline(overrides=['train.seed=7'])"
    process = subprocess.Popen([sys.executable, "-c", program], env=variables(), stderr=subprocess.DEVNULL)
    wait_for((project / "pid").exists)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(lives, family)), 30.0)
    # The control: a run that restores nothing would train with this seed.
    assert "seed: 7" in params.read_text()
    (project / "on_prepare.py").write_text("import shutil; shutil.copy('params.yaml', 'seen')")
    pipeline()
    assert (project / "seen").read_text() == params.read_text() == "train: {seed: 0}\n"
    assert "seed: 7" in OVERRIDDEN.read_text()
    assert f"params.yaml is restored, because a run with overrides was killed; what it had is in {OVERRIDDEN}" in (
        caplog.text
    )
    assert not PARAMS_BEFORE.exists()


@pytest.mark.parametrize("content", ["train: {seed: 7, images: 5}\n", "train: {seed: 1}\n", "train: {}\n", "{"])
def test_parameters_that_were_edited_after_a_flow_was_killed_stay(tmp_path, monkeypatch, caplog, content):
    monkeypatch.chdir(tmp_path)
    PARAMS.write_text("train: {seed: 0}\n")
    # As a kill leaves it.
    with monkeypatch.context() as patch, only_run(), params_kept(["train.seed=7"]):
        patch.setattr("flows.checkout._restore_params", lambda: None)
    PARAMS.write_text(content)
    with only_run():
        assert PARAMS.read_text() == content
    assert OVERRIDDEN.read_text() == "train: {seed: 0}\n"
    assert "params.yaml was edited after a run with overrides was killed, so it stays as it is" in caplog.text
    assert not PARAMS_BEFORE.exists()


def test_parameters_that_are_missing_after_a_flow_was_killed_come_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PARAMS.write_text("train: {seed: 0}\n")
    with monkeypatch.context() as patch, only_run(), params_kept(["train.seed=7"]):
        patch.setattr("flows.checkout._restore_params", lambda: None)
    PARAMS.unlink()
    with only_run():
        assert PARAMS.read_text() == "train: {seed: 0}\n"


def test_a_disk_that_refuses_to_restore_the_parameters_leaves_them_whole_to_the_next_run(tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", 4) as disk:
        monkeypatch.chdir(disk.seen)
        PARAMS.write_text("train: {seed: 0}\n")

        def work():
            with only_run(), params_kept(["train.seed=7"]):
                PARAMS.write_text("train: {seed: 7}\n")
                disk.fill(0)

        with pytest.raises(StageFailed, match="^the disk refuses .*No space left on device") as caught:
            work()
        assert caught.value.is_mistake
        assert PARAMS.read_text() == "train: {seed: 7}\n"
        disk.make_room()
        with only_run():
            assert PARAMS.read_text() == "train: {seed: 0}\n"
        assert [*disk.seen.glob(".*tmp*"), *disk.seen.glob(".cache/*before*")] == []
        monkeypatch.chdir(tmp_path)


def stale_lock(project, pid):
    """Leave DVC's record of a process that writes data/raw."""
    file = project / ".dvc/tmp/rwlock"
    file.parent.mkdir(exist_ok=True)
    info = {"pid": pid, "cmd": "dvc repro ingest"}
    file.write_text(json.dumps({"write": {str(project / "data/raw"): info}, "read": {}}))


def test_a_lock_of_a_dead_process_is_told_and_does_not_hold_the_next_run(project, capfd):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale_lock(project, dead.pid)
    done = subprocess.run(FLOW, env=variables(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = re.sub(r"\s+", " ", done.stdout + done.stderr)
    assert f"(Pid {dead.pid}), in RWLock-file" in told
    assert "had been killed" in told


def test_a_lock_of_a_process_that_lives_is_kept_and_told(project):
    """The control."""
    stale_lock(project, os.getpid())
    with pytest.raises(StageFailed, match="another DVC command works in this folder"):
        pipeline()
    assert str(os.getpid()) in (project / ".dvc/tmp/rwlock").read_text()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_a_stage_that_the_system_kills_is_told_with_its_signal(project, name):
    (project / "on_prepare.py").write_text(f"import os, signal; os.kill(os.getpid(), signal.{name})")
    with pytest.raises(StageFailed, match=f"^prepare was ended by {name}, .* lower train.batch_size;") as caught:
        pipeline()
    assert caught.value.is_mistake
    assert [stage for stage, _ in ran(project)] == ["ingest", "prepare"]


@pytest.mark.parametrize("code", [0, 1, 2, 75, 255, -signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT])
def test_other_codes_are_of_no_fatal_signal(code):
    """The control."""
    assert killed(code) is None


def test_a_flow_on_a_disk_that_refuses_is_one_sentence_and_succeeds_later(new_project, tmp_path):
    with small_disk(tmp_path / "disk", 64) as disk:
        shutil.copytree(new_project, disk.seen, dirs_exist_ok=True)

        def run(**more):
            began = time.monotonic()
            command = disk.inside(FLOW)
            done = subprocess.run(command, env=variables(**more), capture_output=True, text=True, check=False)
            assert time.monotonic() - began < 100.0
            sentences = [line for line in done.stdout.splitlines() + done.stderr.splitlines() if "error: " in line[:8]]
            return done.returncode, sentences, done.stdout + done.stderr

        disk.mount("ro")
        code, sentences, output = run()
        assert (code, sentences) == (
            2,
            ["error: the disk refuses .cache (Read-only file system): make room or correct its rights"],
        )
        assert "Traceback" not in output
        disk.mount("rw")
        disk.fill(0)
        own_server = {"PREFECT_API_URL": "", "PREFECT_HOME": str(disk.path / ".prefect")}
        code, (sentence,), output = run(**own_server)
        assert (code, "is full: make room, and start this again" in sentence) == (2, True)
        assert "Traceback" not in output
        code, (sentence,), output = run()
        assert (code, "ingest: the disk refuses DVC (" in sentence) == (2, True)
        assert "No space left on device" in sentence
        disk.make_room()
        code, sentences, output = run()
        assert (code, sentences) == (0, []), output
