"""A training's run keeps what it was told, ends as the training did, and goes on when that resumes."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.lineage.dataset_version import DatasetVersion
from diffusion_core.lineage.identity import flattened
from diffusion_core.lineage.outbox import Outbox
from diffusion_core.registry import tracking
from diffusion_core.registry.connection import connect
from diffusion_core.registry.delivery import Delivery
from diffusion_core.registry.experiments import experiment_id
from diffusion_core.registry.sending import find_run
from diffusion_core.registry.tracking import replay, training_run
from tests.registry.trainings import DATASET, FOLDER, PARAMS, deliver, history, pictures, stored, track, waiting


def leave_by(error):
    def body(_):
        raise error

    return body


def test_parameters_have_dotted_names():
    assert flattened(PARAMS) == {
        "train.seed": "1",
        "train.network.dim_mults": "[1, 2]",
        "train.network.dropout": "0.0",
    }


def test_a_run_keeps_what_it_was_told(environment):
    def body(run):
        run.metrics({"train/loss": 0.5, "train/rate": float("nan")}, step=64)
        run.metrics({"train/loss": 0.25}, step=128)
        run.tag("self_check", "passed")
        run.text("a.png\n", "skipped/step-1.txt")

    run = stored(environment, track(environment, body))
    assert run.info.status == "FINISHED"
    assert run.data.params == flattened(PARAMS)
    assert (run.data.tags["git_commit"], run.data.tags["self_check"]) == ("c", "passed")
    assert run.data.metrics["train/loss"] == 0.25
    assert history(environment, run.info.run_id, "train/loss") == [(64, 0.5), (128, 0.25)]
    (text,) = connect(environment).list_artifacts(run.info.run_id, "skipped")
    assert text.path == "skipped/step-1.txt"
    # What the store has is not kept a second time.
    assert Outbox(FOLDER).is_empty()
    assert not (FOLDER / "entries.jsonl").exists()


def test_the_dataset_is_an_input_under_its_dvc_name(environment):
    run = stored(environment, track(environment))
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == (DATASET.name, DATASET.md5)
    assert json.loads(used.dataset.source)["uri"] == DATASET.source
    assert [tag.value for tag in used.tags] == ["training"]


def test_the_dataset_says_what_it_has(environment):
    described = replace(DATASET, profile={"images": 5, "size": "8 x 8", "classes": 2})
    (used,) = stored(environment, track(environment, dataset=described)).inputs.dataset_inputs
    assert json.loads(used.dataset.profile) == described.profile
    columns = json.loads(used.dataset.schema)["mlflow_colspec"]
    assert [each["name"] for each in columns] == ["image", "label", "class"]


def test_a_run_that_somebody_renamed_keeps_its_name_when_it_resumes(environment):
    tags = {"mlflow.runName": "digits 8x8 pred_v, 10 images", "git_commit": "c"}
    run_id = track(environment, tags=tags)
    assert stored(environment, run_id).info.run_name == tags["mlflow.runName"]
    connect(environment).set_tag(run_id, "mlflow.runName", "mine")
    assert track(environment, tags=tags | {"git_commit": "d"}) == run_id
    run = stored(environment, run_id)
    assert (run.info.run_name, run.data.tags["git_commit"]) == ("mine", "d")


def test_images_of_a_key_with_a_section_are_sent_once(environment):
    def body(run):
        for step in (10, 20):
            run.image(np.zeros((8, 8, 1), np.uint8), key="samples/training", step=step)

    run_id = track(environment, body)
    assert pictures(environment, run_id) == [10, 20]
    # As after a kill between the image and its acknowledgement.
    image = {"kind": "image", "key": "samples/training", "step": 20, "time": 0}
    outbox = Outbox(FOLDER)
    outbox.append_image(np.zeros((8, 8, 1), np.uint8), image)
    deliver(environment, outbox)
    assert pictures(environment, run_id) == [10, 20]


def test_without_dvc_the_dataset_has_its_own_digest(environment):
    run = stored(environment, track(environment, dataset=DatasetVersion("x", "d" * 64, None, "x")))
    assert run.inputs.dataset_inputs[0].dataset.digest == "d" * 36


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_become_a_series(environment, tmp_path, channels):
    def body(run):
        for step in (10, 20, 10):
            run.image(np.full((8, 8, channels), step, np.uint8), key="samples", step=step)

    assert pictures(environment, track(environment, body)) == [10, 20]
    assert list((tmp_path / "mlartifacts").rglob("*.png"))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SystemExit(143), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
        (ValueError("x"), "FAILED"),
        (UserError("x"), "FAILED"),
    ],
)
def test_a_run_ends_as_its_block_was_left(environment, error, status):
    with pytest.raises(type(error)):
        track(environment, leave_by(error))
    (run,) = connect(environment).search_runs([experiment_id(connect(environment), environment)])
    assert run.info.status == status


def test_resuming_goes_on_in_the_same_run(environment):
    first = track(environment, lambda run: run.metrics({"loss": 2.0}, step=1))
    again = track(environment, lambda run: run.metrics({"loss": 1.0}, step=2))
    assert again == first
    run = stored(environment, first)
    assert run.data.params == flattened(PARAMS)
    assert len(run.inputs.dataset_inputs) == 1
    assert history(environment, first, "loss") == [(1, 2.0), (2, 1.0)]
    assert len(connect(environment).search_runs([run.info.experiment_id])) == 1


def test_steps_that_a_killed_training_repeats_are_logged_once(environment):
    def body(run):
        for step in (1, 2, 3):
            run.metrics({"loss": 1.0 / step, "rate": 1.0}, step=step)

    first = track(environment, body)
    track(environment, lambda run: [run.metrics({"loss": 1.0 / n, "rate": 1.0}, step=n) for n in (2, 3, 4)])
    for name in ("loss", "rate"):
        assert [step for step, _ in history(environment, first, name)] == [1, 2, 3, 4]


def test_steps_that_wait_and_are_repeated_are_logged_once(environment, monkeypatch):
    """The queue knows them, although the store does not yet."""
    outbox = Outbox(FOLDER)
    delivery = Delivery(environment, [])
    for _ in range(2):
        run = tracking.Run(outbox, delivery)
        for step in (1, 2):
            run.metrics({"loss": 1.0}, step=step)
    assert [entry["step"] for entry in outbox.entries()] == [1, 2]
    assert run.next_step("lo") == 3


def test_a_deleted_run_is_replaced_and_the_new_one_says_so(environment):
    first = track(environment)
    connect(environment).delete_run(first)
    second = track(environment)
    assert second != first
    assert stored(environment, second).data.tags["continues_missing_run"] == first


def test_a_store_that_refuses_is_told_before_any_work(environment):
    connect(environment).create_experiment(environment.experiment, artifact_location="file:///elsewhere/mlartifacts")
    with pytest.raises(UserError, match="keeps its artifacts in file:///elsewhere"):
        track(environment, leave_by(AssertionError("the block ran")))
    assert Outbox(FOLDER).is_empty()


@pytest.mark.parametrize("uri", ["http://[::1:5000", "databricks", "postgresql://user@host:notaport/db"])
def test_an_invalid_address_is_told_before_any_work(environment, uri):
    wrong = Environment(tracking_uri=uri)
    with pytest.raises(UserError, match="cannot be used .* correct DIFFUSION_TRACKING_URI"):
        track(wrong, leave_by(AssertionError("the block ran")))
    waiting("two")
    with pytest.raises(UserError, match="cannot be used .* correct DIFFUSION_TRACKING_URI"):
        replay(wrong)


def test_a_database_server_that_never_answers_costs_a_training_two_seconds(environment, silent_port, caplog):
    """Only an SQLite file has longer, because it may have to be made."""
    hangs = Environment(tracking_uri=f"postgresql://user@127.0.0.1:{silent_port}/db")
    began = time.monotonic()
    with training_run(hangs, FOLDER, params=PARAMS, dataset=DATASET, tags={}):
        pass
    # The first is the control: all of it was waited for.
    assert 2.0 <= time.monotonic() - began < 4.0
    assert f"2 entries for the tracking store postgresql://127.0.0.1:{silent_port}/db wait" in caplog.text


def test_a_resumed_training_goes_on_with_its_system_metrics(environment):
    def body(run):
        run.metrics({"system/cpu": 0.5}, run.next_step("system/"))
        raise SystemExit(143)

    for _ in range(3):
        with pytest.raises(SystemExit):
            track(environment, body)
        # Nothing waits, so the queue itself knows no step.
        assert not (FOLDER / "entries.jsonl").exists()
    run_id = find_run(connect(environment), Outbox(FOLDER).key)
    assert [step for step, _ in history(environment, run_id, "system/cpu")] == [0, 1, 2]
