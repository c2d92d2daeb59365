"""Each entry reaches the store once and in order, whatever fails on its way, and holds no training."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from PIL import Image

from diffusion_core.config.environment import Environment
from diffusion_core.errors import Unavailable
from diffusion_core.lineage.identity import flattened
from diffusion_core.lineage.outbox import Outbox
from diffusion_core.registry import tracking
from diffusion_core.registry.connection import connect, store_name
from diffusion_core.registry.delivery import Delivery
from diffusion_core.registry.experiments import experiment_id
from diffusion_core.registry.sending import RUN_KEY, Sender, find_run
from diffusion_core.registry.tracking import end_abandoned, replay, training_run
from tests.faults.commands import wait_for
from tests.registry.servers import serving
from tests.registry.trainings import (
    DATASET,
    FOLDER,
    PARAMS,
    deliver,
    history,
    is_sent,
    pictures,
    stored,
    track,
    waiting,
)


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
    # A `replay` beside the thread that sends would pass over the queue.
    track(environment, lambda _: is_sent(killed))
    assert killed.is_empty()
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


@pytest.mark.parametrize("calls", [1, 2])
def test_an_image_of_which_a_part_arrived_is_completed(environment, tmp_path, monkeypatch, calls):
    """MLflow sends the image, its preview, and a tag without which its pages show no images."""
    outbox = Outbox(FOLDER)
    run = tracking.Run(outbox, Delivery(environment, []))
    run.start({}, DATASET, {})
    run.image(np.full((8, 8, 1), 200, np.uint8), key="samples", step=1)
    original, numbers = MlflowClient.log_artifact, count(1)

    def dies(*arguments, **options):
        original(*arguments, **options)
        if next(numbers) == calls:
            raise Dies

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", dies)
        with pytest.raises(Dies):
            deliver(environment, outbox)
    run_id = find_run(connect(environment), outbox.key)
    assert "mlflow.loggedImages" not in stored(environment, run_id).data.tags
    deliver(environment, Outbox(FOLDER))
    assert pictures(environment, run_id) == [1]
    assert stored(environment, run_id).data.tags["mlflow.loggedImages"] == "True"
    (preview,) = (tmp_path / "mlartifacts").rglob("*.webp")
    with Image.open(preview) as image:
        assert image.getextrema()[0] == (200, 200)


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


@contextmanager
def slow(outbox, seconds):
    """Let each tag of a queue take so long; then wait for its thread, which would send what the next test queues."""
    original = MlflowClient.set_tag

    def set_tag(*arguments, **options):
        time.sleep(seconds)
        original(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MlflowClient, "set_tag", set_tag)
        yield
    wait_for(outbox.is_empty)


def test_a_slow_store_costs_a_training_its_patience_in_all(environment, monkeypatch):
    """Each call succeeds, and 100 tags of 0.1 seconds wait."""
    monkeypatch.setattr(tracking, "PATIENCE_SQLITE", 1.0)
    outbox = waiting("one", finished=False)
    for number in range(100):
        outbox.append({"kind": "tag", "key": f"tag{number}", "value": ""})
    with slow(outbox, 0.1):
        began = time.monotonic()
        with training_run(environment, FOLDER, params=PARAMS, dataset=DATASET, tags={}):
            took = time.monotonic() - began
            # The first is the control: this store is slow enough to use all of it.
            assert 1.0 <= took < 2.0
            began = time.monotonic()
        assert time.monotonic() - began < 1.0
        assert not outbox.is_empty()


def test_the_entries_of_a_training_go_before_those_of_others(environment):
    other = waiting("two", finished=False)
    for number in range(100):
        other.append({"kind": "tag", "key": f"tag{number}", "value": ""})
    other.append({"kind": "end", "status": "KILLED", "time": 0})

    def body(_):
        # Its sending has begun.
        while next(other.unsent())[1]["kind"] == "start":
            time.sleep(0.02)
        body.ended = time.monotonic()

    with slow(other, 0.1):
        track(environment, body)
        # The entries of the other take ten seconds and more.
        assert time.monotonic() - body.ended < 8.0
        # On a busy machine the calls for it come after the deadline.
        client, key = connect(environment), Outbox(FOLDER).key
        while (run := find_run(client, key)) is None or stored(environment, run).info.status != "FINISHED":
            assert not other.is_empty()
            time.sleep(0.02)
        assert not other.is_empty()


@pytest.mark.parametrize("fails", [False, True])
def test_a_run_that_a_lost_answer_left_does_not_stay_running(environment, fails, monkeypatch):
    """Nor does it keep the queue's key, if the store does not answer between the two."""
    delete, answers = MlflowClient.delete_tag, iter([not fails])

    def delete_tag(*arguments):
        if not next(answers, True):
            raise MlflowException("no answer", error_code=TEMPORARILY_UNAVAILABLE)
        return delete(*arguments)

    monkeypatch.setattr(MlflowClient, "delete_tag", delete_tag)
    outbox = waiting("one", finished=False)
    client = connect(environment)
    double = client.create_run(experiment_id(client, environment), tags={RUN_KEY: outbox.key}).info.run_id
    deliver(environment, outbox)
    # The double is the one that is found; the queue's own is another.
    own = client.create_run(experiment_id(client, environment), tags={RUN_KEY: outbox.key}).info.run_id
    outbox.set_run_id(own)
    tracking.Run(outbox, Delivery(environment, [])).finish("FINISHED")
    if fails:
        with pytest.raises(MlflowException, match="no answer"):
            deliver(environment, outbox)
    deliver(environment, outbox)
    assert [stored(environment, run).info.status for run in (own, double)] == ["FINISHED", "KILLED"]
    assert find_run(client, outbox.key) == own


def test_what_another_process_left_in_a_queue_that_it_was_sending_is_sent(environment):
    """It may have ended before it saw the last entry, and nobody wakes the thread again."""
    outbox = waiting("one")
    delivery = Delivery(environment, [outbox])
    with outbox.sending():
        threading.Thread(target=delivery.run, daemon=True).start()
        time.sleep(1.0)
        assert not outbox.is_empty()
    assert is_sent(outbox)
