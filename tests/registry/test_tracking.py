import json
import shutil
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from diffusion_core.config.environment import Environment
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.lineage.identity import flattened
from diffusion_core.lineage.outbox import DamagedQueue, Outbox
from diffusion_core.lineage.provenance import DatasetVersion
from diffusion_core.registry import tracking
from diffusion_core.registry.connection import answering, connect, experiment_id, store_name
from diffusion_core.registry.delivery import Delivery
from diffusion_core.registry.sending import RUN_KEY, RefusedQueue, Sender, find_run
from diffusion_core.registry.tracking import end_abandoned, replay, training_run
from tests.registry.projects import new_environment
from tests.registry.servers import serving

PARAMS = {"train": {"seed": 1, "network": {"dim_mults": [1, 2], "dropout": 0.0}}}
DATASET = DatasetVersion(name="data/prepared", digest="d" * 64, md5="5" * 32 + ".dir", source="data/prepared")
FOLDER = Path(".checkpoints/one/outbox")


def nothing(_):
    pass


def track(environment, body=nothing, *, folder=FOLDER, params=PARAMS, dataset=DATASET):
    """Run a training's tracking; return the id of its run."""
    with training_run(environment, folder, params=params, dataset=dataset, tags={"git_commit": "c"}) as run:
        body(run)
    return find_run(connect(environment), run.key)


def stored(environment, run_id):
    return connect(environment).get_run(run_id)


def history(environment, run_id, name):
    return [(each.step, each.value) for each in connect(environment).get_metric_history(run_id, name)]


def pictures(environment, run_id):
    files = [file.path for file in connect(environment).list_artifacts(run_id, "images")]
    return sorted(int(name.split("+")[2]) for name in files if name.endswith(".png"))


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


def test_an_unreachable_server_holds_nothing_and_loses_nothing(tmp_path, environment, caplog):
    away = environment.model_copy(update={"tracking_uri": Environment(tracking_uri="http://127.0.0.1:1").tracking_uri})

    def body(run):
        run.metrics({"loss": 2.0}, step=1)
        run.image(np.zeros((8, 8, 1), np.uint8), key="samples", step=1)
        run.metrics({"loss": 1.0}, step=2)

    with training_run(away, FOLDER, params=PARAMS, dataset=DATASET, tags={}) as run:
        body(run)
    assert "5 entries for the tracking store http://127.0.0.1:1 wait in .checkpoints/one/outbox" in caplog.text
    with pytest.raises(Unavailable):
        replay(away)
    # The server comes back.
    Outbox(FOLDER).set_store(store_name(environment))
    assert replay(environment) == 5
    run_id = find_run(connect(environment), run.key)
    assert stored(environment, run_id).info.status == "FINISHED"
    assert history(environment, run_id, "loss") == [(1, 2.0), (2, 1.0)]
    assert pictures(environment, run_id) == [1]
    assert replay(environment) == 0
    assert not (FOLDER / "images").exists()


def test_the_next_training_sends_what_waits_and_ends_what_was_killed(environment):
    killed = Outbox(Path(".checkpoints/killed/outbox"))
    run = tracking.Run(killed, Delivery(environment, []))
    run.start(flattened(PARAMS), DATASET, {})
    run.metrics({"loss": 3.0}, step=1)
    track(environment)
    replay(environment)
    run_id = find_run(connect(environment), killed.key)
    assert stored(environment, run_id).info.status == "KILLED"
    assert history(environment, run_id, "loss") == [(1, 3.0)]


def test_a_training_that_runs_is_not_ended_by_another(environment):
    running = Outbox(Path(".checkpoints/running/outbox"))
    tracking.Run(running, Delivery(environment, [])).start({}, DATASET, {})
    with running.of_training():
        worker = threading.Thread(target=end_abandoned, args=(running,))
        worker.start()
        worker.join()
    assert [entry["kind"] for entry in running.entries()] == ["start"]
    end_abandoned(running)
    assert [entry["kind"] for entry in running.entries()] == ["start", "end"]


class Dies(Exception):
    """In the place of a kill."""


@pytest.mark.parametrize("call", ["create_run", "log_batch", "log_image", "set_tag", "set_terminated", "log_inputs"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_at_any_call_of_the_store_sends_each_entry_once(environment, monkeypatch, call, moment):
    """After the call the store has the entry, and the queue does not know it."""
    outbox = Outbox(FOLDER)
    run = tracking.Run(outbox, Delivery(environment, []))
    run.start(flattened(PARAMS), DATASET, {})
    for step in (1, 2):
        run.metrics({"loss": 1.0 / step, "rate": 1.0}, step)
        run.image(np.zeros((8, 8, 1), np.uint8), key="samples", step=step)
    run.tag("a", "b")
    run.finish("FINISHED")
    original = getattr(MlflowClient, call)

    def dies(*arguments, **options):
        if moment == "after":
            original(*arguments, **options)
        raise Dies

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, dies)
        with pytest.raises(Dies):
            list(Sender(connect(environment), environment, outbox).send())
    list(Sender(connect(environment), environment, Outbox(FOLDER)).send())
    run_id = find_run(connect(environment), outbox.key)
    assert len(connect(environment).search_runs([experiment_id(connect(environment), environment)])) == 1
    assert stored(environment, run_id).info.status == "FINISHED"
    assert history(environment, run_id, "loss") == [(1, 1.0), (2, 0.5)]
    assert history(environment, run_id, "rate") == [(1, 1.0), (2, 1.0)]
    assert pictures(environment, run_id) == [1, 2]
    assert len(stored(environment, run_id).inputs.dataset_inputs) == 1


class _Flaky(BaseHTTPRequestHandler):
    """Answers 503 to every second request, and passes the others on to a store in memory."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1
        answers = self.server.asked % 2 == 0
        self.send_response(200 if answers else 503)
        self.end_headers()
        self.wfile.write(b"{}")
        if answers:
            self.server.taken += [(metric["step"], metric["value"]) for metric in body.get("metrics", [])]

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *arguments):
        pass


def test_metrics_arrive_once_and_in_order_over_a_connection_that_fails_every_second_time(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("diffusion_core.registry.delivery.FIRST_PAUSE", 0.01)
    with serving(_Flaky) as server:
        server.asked, server.taken = 0, []
        outbox = Outbox(tmp_path / "one/outbox")
        outbox.set_run_id("0" * 32)
        environment = Environment(tracking_uri=f"http://127.0.0.1:{server.server_port}")
        delivery = Delivery(environment, [outbox])
        run = tracking.Run(outbox, delivery)
        delivery.start()
        for step in range(1, 9):
            run.metrics({"loss": float(step)}, step)
            delivery.wait_for(outbox, 20.0)
        assert server.taken == [(step, float(step)) for step in range(1, 9)]


def test_a_queue_survives_a_line_that_was_being_written(tmp_path):
    outbox = Outbox(tmp_path / "one/outbox")
    outbox.append({"kind": "tag", "key": "a", "value": "b"})
    with (outbox.folder / "entries.jsonl").open("ab") as file:
        file.write(b'{"kind": "ta')
    again = Outbox(outbox.folder)
    assert [entry["key"] for entry in again.entries()] == ["a"]
    again.cut_torn_line()
    again.append({"kind": "tag", "key": "c", "value": "d"})
    assert [entry["key"] for entry in again.entries()] == ["a", "c"]
    assert again.key == outbox.key


def test_a_queue_is_not_cleared_under_a_thread_that_sends_it(tmp_path):
    """It would begin at the first entry again, and set a finished run to running."""
    outbox = Outbox(tmp_path / "one/outbox")
    outbox.append({"kind": "end", "status": "FINISHED", "time": 0})
    ((number, _),) = outbox.unsent()
    outbox.acknowledge(number)
    clearing = threading.Thread(target=outbox.clear_if_done)
    with outbox.sending():
        clearing.start()
        clearing.join(0.3)
        assert clearing.is_alive()
        assert (outbox.folder / "entries.jsonl").exists()
    clearing.join()
    assert not (outbox.folder / "entries.jsonl").exists()


def test_a_queue_in_a_folder_that_was_copied_has_the_same_run(tmp_path):
    outbox = Outbox(tmp_path / "one/outbox")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert Outbox(tmp_path / "two/outbox").key == outbox.key


def test_a_file_that_cannot_be_read_is_no_trouble_with_the_store(environment):
    missing = FileNotFoundError(2, "No such file", "picture.png")
    with pytest.raises(FileNotFoundError), answering(environment):
        raise missing


def waiting(name, *entries, finished=True):
    """The queue of another training, beside the one in FOLDER, which has sent nothing."""
    outbox = Outbox(Path(".checkpoints") / name / "outbox")
    run = tracking.Run(outbox, Delivery(Environment(), []))
    run.start({}, DATASET, {})
    for values, step in entries:
        run.metrics(values, step)
    if finished:
        run.finish("FINISHED")
    return outbox


def deliver(environment, outbox):
    return list(Sender(connect(environment), environment, outbox).send())


def is_sent(outbox):
    end = time.monotonic() + 20.0
    while not outbox.is_empty() and time.monotonic() < end:
        time.sleep(0.02)
    return outbox.is_empty()


@pytest.mark.parametrize("other", [{"experiment": "other"}, {"tracking_uri": "http://127.0.0.1:1"}])
def test_a_queue_goes_to_its_own_store_and_experiment_alone(environment, caplog, other):
    elsewhere, here = waiting("a"), waiting("b")
    elsewhere.set_store(store_name(Environment(**{"tracking_uri": environment.tracking_uri, **other})))
    # They are sent in the order of their names.
    track(environment, lambda _: is_sent(here))
    assert here.is_empty()
    assert replay(environment) == 0
    assert f"what waits in {elsewhere.folder} is for {elsewhere.store}" in caplog.text
    assert [entry["kind"] for entry in elsewhere.entries()] == ["start", "end"]
    assert find_run(connect(environment), elsewhere.key) is None


def test_a_training_that_resumes_with_another_store_takes_all_of_its_queue_there(environment, tmp_path, caplog):
    (tmp_path / "first").mkdir()
    first = new_environment(tmp_path / "first")
    outbox = waiting("one", ({"loss": 2.0}, 1), finished=False)
    outbox.set_store(store_name(first))
    deliver(first, outbox)
    tracking.Run(outbox, Delivery(environment, [])).metrics({"loss": 1.5}, 2)
    track(environment, lambda run: run.metrics({"loss": 1.0}, 3))
    assert f"what waits in {outbox.folder} for {store_name(first)} goes to {store_name(environment)} now" in caplog.text
    run_id = find_run(connect(environment), outbox.key)
    assert history(environment, run_id, "loss") == [(1, 2.0), (2, 1.5), (3, 1.0)]


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


def test_what_waits_for_a_deleted_run_stops_no_other_queue(environment, caplog):
    deleted = waiting("a", ({"loss": 1.0}, 1), finished=False)
    deliver(environment, deleted)
    tracking.Run(deleted, Delivery(environment, [])).metrics({"loss": 0.5}, 2)
    connect(environment).delete_run(deleted.run_id)
    other = waiting("b")
    assert replay(environment) == 4
    assert f"the run {deleted.run_id} was deleted in MLflow: 2 entries for it are not sent" in caplog.text
    assert other.is_empty()
    assert stored(environment, find_run(connect(environment), other.key)).info.status == "FINISHED"
    assert replay(environment) == 0


def test_a_training_whose_run_was_deleted_while_entries_wait_has_a_new_run(environment):
    outbox = waiting("one", ({"loss": 2.0}, 1), finished=False)
    deliver(environment, outbox)
    first = outbox.run_id
    tracking.Run(outbox, Delivery(environment, [])).metrics({"loss": 1.0}, 2)
    connect(environment).delete_run(first)
    second = track(environment, lambda run: run.metrics({"loss": 0.5}, 3))
    assert stored(environment, second).data.tags["continues_missing_run"] == first
    assert stored(environment, second).info.status == "FINISHED"
    assert history(environment, second, "loss") == [(3, 0.5)]


def test_what_waits_for_a_run_of_another_database_stays(environment):
    """The right one may come back."""
    outbox = waiting("one")
    ((number, _), _) = outbox.unsent()
    outbox.acknowledge(number)
    outbox.set_run_id("0" * 32)
    with pytest.raises(RefusedQueue):
        replay(environment)
    assert [entry["kind"] for _, entry in outbox.unsent()] == ["end"]


def test_an_entry_that_the_store_refuses_stops_its_queue_alone(environment, caplog):
    refused, other = waiting("a", ({"no*name": 1.0}, 1)), waiting("b")
    with pytest.raises(RefusedQueue, match=f"refuses what waits in {refused.folder} "):
        replay(environment)
    assert other.is_empty()
    last = waiting("c")
    own = track(environment, lambda _: is_sent(last))
    assert last.is_empty()
    assert stored(environment, own).info.status == "FINISHED"
    assert caplog.text.count(f"refuses what waits in {refused.folder} ") == 2
    assert replay(environment, key=last.key) == 0


@pytest.mark.parametrize("file", ["entries.jsonl", "key", "sent", "store"])
def test_a_damaged_queue_stops_no_other(environment, file):
    damaged, other = waiting("a"), waiting("b")
    (damaged.folder / file).write_bytes(b"\x00\n")
    own = track(environment, lambda _: is_sent(other))
    assert stored(environment, own).info.status == "FINISHED"
    assert other.is_empty()
    last = waiting("c")
    with pytest.raises(DamagedQueue, match=f"{damaged.folder}/{file} is damaged"):
        replay(environment)
    assert last.is_empty()


def slow(monkeypatch, seconds):
    original = MlflowClient.set_tag

    def set_tag(*arguments, **options):
        time.sleep(seconds)
        original(*arguments, **options)

    monkeypatch.setattr(MlflowClient, "set_tag", set_tag)


def test_a_slow_store_costs_a_training_its_patience_in_all(environment, monkeypatch):
    """Each call succeeds, and 100 tags of 0.1 seconds wait."""
    slow(monkeypatch, 0.1)
    monkeypatch.setattr(tracking, "PATIENCE_DATABASE", 1.0)
    outbox = waiting("one", finished=False)
    for number in range(100):
        outbox.append({"kind": "tag", "key": f"tag{number}", "value": ""})
    began = time.monotonic()
    with training_run(environment, FOLDER, params=PARAMS, dataset=DATASET, tags={}):
        took = time.monotonic() - began
        # The first is the control: this store is slow enough to use all of it.
        assert 1.0 <= took < 2.0
        began = time.monotonic()
    assert time.monotonic() - began < 1.0
    assert not outbox.is_empty()


def test_the_entries_of_a_training_go_before_those_of_others(environment, monkeypatch):
    slow(monkeypatch, 0.1)
    other = waiting("two", finished=False)
    for number in range(100):
        other.append({"kind": "tag", "key": f"tag{number}", "value": ""})
    other.append({"kind": "end", "status": "KILLED", "time": 0})

    def body(_):
        # Its sending has begun.
        while next(other.unsent())[1]["kind"] == "start":
            time.sleep(0.02)
        body.ended = time.monotonic()

    run = track(environment, body)
    # The entries of the other take ten seconds and more.
    assert time.monotonic() - body.ended < 8.0
    # On a busy machine the last call comes after the deadline.
    while stored(environment, run).info.status != "FINISHED":
        assert not other.is_empty()
        time.sleep(0.02)
    assert not other.is_empty()


def test_a_run_that_a_lost_answer_left_does_not_stay_running(environment):
    outbox = waiting("one", finished=False)
    client = connect(environment)
    double = client.create_run(experiment_id(client, environment), tags={RUN_KEY: outbox.key}).info.run_id
    deliver(environment, outbox)
    # The double is the one that is found; the queue's own is another.
    own = client.create_run(experiment_id(client, environment), tags={RUN_KEY: outbox.key}).info.run_id
    outbox.set_run_id(own)
    tracking.Run(outbox, Delivery(environment, [])).finish("FINISHED")
    deliver(environment, outbox)
    assert [stored(environment, run).info.status for run in (own, double)] == ["FINISHED", "KILLED"]
    assert find_run(client, outbox.key) == own
