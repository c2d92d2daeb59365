"""The soak finds what is left, lost or counted twice; `tests/soak/control.py` is its control as a whole."""

import random
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from mlflow import MlflowClient

from tests.faults.commands import wait_for
from tests.registry.projects import empty_store
from tests.soak import checks
from tests.soak.disk import Disk
from tests.soak.project import kill_marked, marked, variables
from tests.soak.round import Disturbance, Round
from tests.soak.servers import Server
from tests.soak.subjects import SUBJECTS, Deployment


@contextmanager
def orphan_of(mark):
    """A process in a session of its own, as an orphan may be."""
    program = [sys.executable, "-c", "import time; time.sleep(60)"]
    orphan = subprocess.Popen(program, env=variables(mark), start_new_session=True)
    try:
        # It has its own variables only once it has begun its program.
        wait_for(lambda: marked(mark))
        yield orphan
    finally:
        kill_marked(mark)
        orphan.wait()


def test_a_process_that_is_left_is_found(tmp_path):
    with orphan_of(tmp_path) as orphan:
        (found,) = checks.processes(marked(tmp_path))
        assert f"process {orphan.pid} is left" in found
    assert marked(tmp_path) == []


def test_a_process_that_a_worker_has_left_is_found_once_the_worker_has_ended(tmp_path):
    worker = Server(("http.server", "0", "--bind", "127.0.0.1"), tmp_path, variables(tmp_path), None)
    subject = Deployment(tmp_path, variables(tmp_path), tmp_path / "log.txt", 0)
    subject.worker, subject.prefect = worker, Server((), tmp_path, variables(tmp_path), None)
    subject.seconds_to_end = 5.0
    worker.start()
    with orphan_of(tmp_path) as orphan:
        # What runs under a worker may run.
        assert subject.leftovers() == []
        subject.close()
        (found,) = subject.leftovers()
        assert found.pid == orphan.pid
    # The control: without it, nothing is left.
    assert subject.leftovers() == []


def test_a_disk_that_cannot_be_filled_is_not_filled(tmp_path):
    """A worker's runs have no limit on their files either."""
    disk = Disk(tmp_path / "disk")
    possible = {
        kind: "full disk" in subject(tmp_path, {}, None, 0).possible(disk) for kind, subject in SUBJECTS.items()
    }
    assert possible == {"training": True, "flow": True, "worker": False}
    disk.can_be_filled = True
    assert "full disk" in Deployment(tmp_path, {}, None, 0).possible(disk)


def test_a_disturbance_that_finds_no_process_neither_counts_nor_excuses(tmp_path):
    """As a signal to a stage between two stages."""
    server = Server((), tmp_path, {}, None)
    disturbed = Round("round-0", "training", 0, random.Random(0), tmp_path / "round", server, "http://127.0.0.1:9", 0.0)
    disturbed._disturb(Disturbance("TERM stage", 0.0, 1.0, 0))
    assert (disturbed.done, disturbed._excused) == ([], False)
    # The control: a stage that is there. The name of its module is enough to be taken for one.
    program = [sys.executable, "-c", "import time; time.sleep(60)", "diffusion_core", "train"]
    with subprocess.Popen(program, env=variables(tmp_path / "round")) as stage:
        wait_for(lambda: disturbed.subject.targets("stage"))
        disturbed._disturb(Disturbance("TERM stage", 0.0, 1.0, 0))
        assert stage.wait(60) == -signal.SIGTERM
    assert (disturbed.done, disturbed._excused) == (["TERM stage"], True)


@pytest.mark.parametrize("name", ["models/.model.json.tmp-7", ".checkpoints/d/.step-000000001.trash-7/model"])
def test_a_temporary_file_that_is_left_is_found(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True)
    assert checks.temporary_files(tmp_path / "models") == []
    (tmp_path / name).touch()
    assert checks.temporary_files(tmp_path)


def no_change(client, run):
    pass


def logged_twice(client, run):
    client.log_metric(run, "train/loss", 0.5, step=32, timestamp=9)


def lost(client, run):
    client.delete_run(run)


def left_running(client, run):
    client.update_run(run, "RUNNING")


def second_run(client, run):
    client.create_run(client.get_run(run).info.experiment_id)


def another_value(client, run):
    client.log_metric(run, "train/loss", 0.25, step=96, timestamp=96)


FAULTS = {
    no_change: [],
    logged_twice: ["train/loss has the steps [32] more than once", "train/loss is out of order", "train/loss is"],
    lost: ["MLflow has 0 runs"],
    left_running: ["is RUNNING"],
    second_run: ["MLflow has 2 runs"],
    another_value: ["train/loss is"],
}


@pytest.mark.parametrize("change", FAULTS, ids=lambda change: change.__name__)
def test_what_mlflow_has_too_much_or_too_little_is_found(tmp_path, change):
    stores = []
    for name in ("disturbed", "undisturbed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mlflow.db").write_bytes(empty_store())
        stores.append(f"sqlite:///{tmp_path}/{name}/mlflow.db")
        client = MlflowClient(stores[-1])
        experiment = client.create_experiment("diffusion", artifact_location=(tmp_path / name / "files").as_uri())
        run = client.create_run(experiment).info.run_id
        for step in (32, 64):
            client.log_metric(run, "train/loss", 1 / step, step=step, timestamp=step)
        client.set_terminated(run)
        if name == "disturbed":
            change(client, run)
    found = checks.tracking_differences(
        stores[0], "diffusion", tmp_path / "undisturbed", publishes=False, in_order=True
    )
    assert len(found) == len(FAULTS[change]), found
    assert all(words in sentence for words, sentence in zip(FAULTS[change], found, strict=True)), found
