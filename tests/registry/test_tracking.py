import json
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.lineage.provenance import DatasetVersion
from diffusion_core.registry.connection import answering, connect, experiment_id
from diffusion_core.registry.tracking import Run, flattened, training_run
from tests.registry.servers import dying_server, serving

PARAMS = {"train": {"seed": 1, "network": {"dim_mults": [1, 2], "dropout": 0.0}}}
DATASET = DatasetVersion(name="data/prepared", digest="d" * 64, md5="5" * 32 + ".dir", source="data/prepared")


def nothing(_):
    pass


def track(environment, body=nothing, *, run_id=None, params=PARAMS, dataset=DATASET):
    with training_run(environment, run_id=run_id, params=params, dataset=dataset, tags={"git_commit": "c"}) as run:
        body(run)
    return run.id


def stored(environment, run_id):
    return connect(environment).get_run(run_id)


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

    run = stored(environment, track(environment, body))
    assert run.info.status == "FINISHED"
    assert run.data.params == flattened(PARAMS)
    assert run.data.tags["git_commit"] == "c"
    assert run.data.metrics["train/loss"] == 0.25
    history = connect(environment).get_metric_history(run.info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(64, 0.5), (128, 0.25)]


def test_the_dataset_is_an_input_under_its_dvc_name(environment):
    run = stored(environment, track(environment))
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == (DATASET.name, DATASET.md5)
    assert json.loads(used.dataset.source)["uri"] == DATASET.source
    assert [tag.value for tag in used.tags] == ["training"]


def test_without_dvc_the_dataset_has_its_own_digest(environment):
    run = stored(environment, track(environment, dataset=DatasetVersion("x", "d" * 64, None, "x")))
    assert run.inputs.dataset_inputs[0].dataset.digest == "d" * 36


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_become_a_series(environment, tmp_path, channels):
    def body(run):
        for step in (10, 20):
            run.image(np.full((8, 8, channels), step, np.uint8), key="samples", step=step)

    run_id = track(environment, body)
    names = [file.path for file in connect(environment).list_artifacts(run_id, "images") if file.path.endswith(".png")]
    assert sorted(name.split("+")[2] for name in names) == ["10", "20"]
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
    more = {"train": PARAMS["train"] | {"new": True}}
    again = track(environment, lambda run: run.metrics({"loss": 1.0}, step=2), run_id=first, params=more)
    assert again == first
    run = stored(environment, first)
    assert run.data.params == flattened(more)
    assert len(run.inputs.dataset_inputs) == 1
    assert [metric.step for metric in connect(environment).get_metric_history(first, "loss")] == [1, 2]
    assert len(connect(environment).search_runs([run.info.experiment_id])) == 1


def test_steps_that_a_killed_training_comes_by_again_are_logged_once(environment):
    def body(run):
        for step in (1, 2, 3):
            run.metrics({"loss": 1.0 / step, "rate": 1.0}, step=step)

    first = track(environment, body)
    track(
        environment, lambda run: [run.metrics({"loss": 1.0 / n, "rate": 1.0}, step=n) for n in (2, 3, 4)], run_id=first
    )
    for name in ("loss", "rate"):
        assert [each.step for each in connect(environment).get_metric_history(first, name)] == [1, 2, 3, 4]


def test_resuming_with_other_parameters_is_refused_and_changes_nothing(environment):
    first = track(environment)
    with pytest.raises(UserError, match=r"train\.seed 1, and it is 2 now"):
        track(environment, run_id=first, params={"train": {"seed": 2}})
    run = stored(environment, first)
    assert (run.info.status, run.data.params) == ("FINISHED", flattened(PARAMS))


@pytest.mark.parametrize("missing", ["0" * 32, "no id at all"])
def test_a_run_that_is_not_in_this_store_is_replaced_and_the_new_one_says_so(environment, missing):
    run = stored(environment, track(environment, run_id=missing))
    assert run.info.run_id != missing
    assert run.data.tags["continues_missing_run"] == missing
    assert run.data.params == flattened(PARAMS)


def test_a_deleted_run_is_replaced(environment):
    first = track(environment)
    connect(environment).delete_run(first)
    assert track(environment, run_id=first) != first


def test_an_unreachable_server_is_told_before_any_work():
    with pytest.raises(UserError, match="DIFFUSION_TRACKING_URI"):
        track(Environment(tracking_uri="http://127.0.0.1:1"), leave_by(AssertionError("the block ran")))


def test_what_is_no_metric_is_an_error_and_not_kept_for_later(environment):
    with pytest.raises(MlflowException, match="Invalid value"):
        track(environment, lambda run: run.metrics({"a?b": 1.0}, step=0))
    (run,) = connect(environment).search_runs([experiment_id(connect(environment), environment)])
    assert run.info.status == "FAILED"


class _Flaky(BaseHTTPRequestHandler):
    """Takes every request while `server.answers`, and answers 503 otherwise."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200 if self.server.answers else 503)
        self.end_headers()
        self.wfile.write(b"{}")
        if self.server.answers:
            self.server.taken.append([(metric["step"], metric["value"]) for metric in body["metrics"]])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def flaky_server(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with serving(_Flaky) as server:
        server.answers, server.taken = True, []
        yield server


def test_metrics_wait_while_the_server_is_away_and_arrive_once_in_their_order(flaky_server, caplog):
    client = MlflowClient(f"http://127.0.0.1:{flaky_server.server_port}")
    run = Run(client, "0" * 32, "http://shown")
    run.metrics({"loss": 1.0}, step=1)
    flaky_server.answers = False
    run.metrics({"loss": 2.0}, step=2)
    run.metrics({"loss": 3.0}, step=3)
    assert flaky_server.taken == [[(1, 1.0)]]
    (warning,) = [record.getMessage() for record in caplog.records if "does not answer" in record.getMessage()]
    assert warning.startswith("the tracking store http://shown does not answer (API request to ")
    assert warning.endswith("503 error responses'))); what is logged waits")
    flaky_server.answers = True
    run.metrics({"loss": 4.0}, step=4)
    assert flaky_server.taken == [[(1, 1.0)], [(2, 2.0)], [(3, 3.0)], [(4, 4.0)]]


@pytest.mark.parametrize(
    "trouble", [requests.ConnectionError("reset"), requests.HTTPError("502"), TimeoutError("slow")]
)
def test_pictures_wait_too_whatever_the_way_to_the_store_does(environment, monkeypatch, trouble):
    original = MlflowClient.log_image

    def fail(*_, **__):
        raise trouble

    def body(run):
        monkeypatch.setattr(MlflowClient, "log_image", fail)
        run.image(np.zeros((8, 8, 1), np.uint8), key="samples", step=1)
        monkeypatch.setattr(MlflowClient, "log_image", original)
        run.metrics({"loss": 1.0}, step=2)

    run_id = track(environment, body)
    assert [file for file in connect(environment).list_artifacts(run_id, "images") if file.path.endswith(".png")]


def test_a_file_that_cannot_be_read_is_no_trouble_with_the_store(environment):
    missing = FileNotFoundError(2, "No such file", "picture.png")
    with pytest.raises(FileNotFoundError), answering(environment):
        raise missing


def test_a_server_that_dies_while_the_run_is_opened_is_told(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with dying_server() as address, pytest.raises(UserError, match=rf"store {address} stopped answering \(.*503"):
        track(Environment(tracking_uri=address), leave_by(AssertionError("the block ran")))
