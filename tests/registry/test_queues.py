"""A queue goes to its own run and store, and one that cannot be sent stops no other."""

import errno
import os
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from diffusion_core.__main__ import main
from diffusion_core.config.environment import Environment
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.lineage.checkpoints import only_training
from diffusion_core.lineage.outbox import Outbox
from diffusion_core.lineage.queue_errors import DamagedQueue, InaccessibleQueue, RefusedQueue
from diffusion_core.registry import tracking
from diffusion_core.registry.connection import answering, connect, store_name
from diffusion_core.registry.delivery import Delivery
from diffusion_core.registry.sending import Sender, find_run
from diffusion_core.registry.tracking import replay, replay_training
from diffusion_core.stages import keeping
from tests.registry.projects import new_environment
from tests.registry.trainings import DATASET, deliver, history, is_sent, stored, track, waiting


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


def test_a_replay_clears_nothing_that_the_training_appends_when_it_begins_again(environment, monkeypatch):
    outbox, clear = waiting("one"), Outbox.clear

    def begin():
        with only_training(outbox.folder.parent):
            tracking.Run(outbox, Delivery(environment, [])).start({}, DATASET, {})

    training = threading.Thread(target=begin)

    def clear_late(queue):
        training.start()
        training.join(0.5)
        clear(queue)

    monkeypatch.setattr(Outbox, "clear", clear_late)
    assert replay(environment) == 2
    training.join()
    assert [entry["kind"] for entry in outbox.entries()] == ["start"]


def test_a_queue_in_a_folder_that_was_copied_has_the_same_run(tmp_path):
    outbox = Outbox(tmp_path / "one/outbox")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert Outbox(tmp_path / "two/outbox").key == outbox.key


def test_a_file_that_cannot_be_read_is_no_trouble_with_the_store(environment):
    missing = FileNotFoundError(2, "No such file", "picture.png")
    with pytest.raises(FileNotFoundError), answering(environment):
        raise missing


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


def test_what_waits_for_another_store_can_be_sent_to_this_one(environment, tmp_path, monkeypatch, capsys):
    """For example, the address was misspelled and no training resumes the queue."""
    monkeypatch.setenv("DIFFUSION_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    misspelled, here = waiting("a", ({"loss": 1.0}, 1)), waiting("b")
    misspelled.set_store(store_name(Environment(tracking_uri="http://127.0.0.1:1")))
    for any_store, code, said in (
        # The control: it is never sent unasked.
        ([], 1, f"has taken 2 entries that waited\nreplay: 3 entries stay in {misspelled.folder}\n"),
        (["--any-store"], 0, "has taken 3 entries that waited\n"),
    ):
        monkeypatch.setattr(sys, "argv", ["diffusion", "replay", *any_store])
        with pytest.raises(SystemExit) as left:
            main()
        assert (left.value.code or 0, here.is_empty()) == (code, True)
        assert capsys.readouterr().out.endswith(said)
    assert history(environment, find_run(connect(environment), misspelled.key), "loss") == [(1, 1.0)]


def test_a_store_that_has_taken_a_part_costs_the_other_nothing(environment, tmp_path):
    (tmp_path / "first").mkdir()
    first = new_environment(tmp_path / "first")
    outbox = waiting("one", ({"loss": 2.0}, 1), finished=False)
    outbox.set_store(store_name(first))
    deliver(first, outbox)
    tracking.Run(outbox, Delivery(environment, [])).metrics({"loss": 1.0}, 2)
    # The control: the queue of a training that runs stays where it is.
    with only_training(outbox.folder.parent):
        assert replay(environment, any_store=True) == 0
        assert outbox.is_for(store_name(first))
    assert replay(environment, any_store=True) == 4
    assert history(environment, find_run(connect(environment), outbox.key), "loss") == [(1, 2.0), (2, 1.0)]


def test_a_queue_that_was_given_another_store_is_not_sent_by_a_training_that_knew_it(environment, tmp_path):
    outbox, kept = waiting("a"), waiting("b")
    delivery = Delivery(environment, [Outbox(tmp_path / "own/outbox"), outbox, kept])
    outbox.set_store(store_name(Environment(tracking_uri="http://127.0.0.1:1")))
    delivery.start()
    # The control: the other one is sent.
    assert is_sent(kept)
    assert not outbox.is_empty()
    assert outbox.run_id is None


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


def test_a_queue_that_another_process_sends_gets_no_other_store(environment, tmp_path):
    (tmp_path / "first").mkdir()
    outbox = waiting("one", ({"loss": 2.0}, 1), finished=False)
    outbox.set_store(store_name(new_environment(tmp_path / "first")))
    outbox.acknowledge(7)
    with (
        outbox.sending(),
        pytest.raises(Unavailable, match=r"another process sends what waits in .* to sqlite:.*first"),
    ):
        track(environment, lambda run: run.metrics({"loss": 1.0}, 2))
    assert (outbox.folder / "sent").read_text(encoding="utf-8") == "7"
    # Without one, all of it goes to the new store.
    track(environment, lambda run: run.metrics({"loss": 1.0}, 2))
    assert history(environment, find_run(connect(environment), outbox.key), "loss") == [(1, 2.0), (2, 1.0)]


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
    # The control: that of its own training is.
    replay_training(environment, last.key)
    with pytest.raises(RefusedQueue):
        replay_training(environment, refused.key)


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


@pytest.mark.parametrize("file", [".lock", "outbox/.sending", "outbox/entries.jsonl", "outbox/key", "outbox/sent"])
def test_a_queue_that_the_disk_refuses_stops_no_other(environment, caplog, file):
    """As the disk refuses files of another user. It refuses a folder in the place of a file to root too."""
    refused, other = waiting("a"), waiting("b")
    path = refused.folder.parent / file
    path.unlink(missing_ok=True)
    path.mkdir()
    own = track(environment, lambda _: is_sent(other))
    assert stored(environment, own).info.status == "FINISHED"
    assert other.is_empty()
    assert f"so what waits in {refused.folder} is not sent" in caplog.text
    last = waiting("c")
    with pytest.raises(InaccessibleQueue, match=f"the disk refuses .*{path} "):
        replay(environment)
    assert last.is_empty()


def test_a_training_whose_own_queue_the_disk_refuses_does_not_begin(environment):
    """The control: what its own queue cannot take would be lost."""
    (waiting("one").folder / ".sending").mkdir()
    with pytest.raises(UserError, match=r"the disk refuses .*/outbox/\.sending "):
        track(environment)


def test_an_error_that_passes_is_tried_again(environment, monkeypatch):
    """The disk's answer is given here: flows run a stage again that ends so."""
    outbox = waiting("one")
    read = Path.read_bytes

    def stale(path):
        if path == outbox.folder / "key":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", stale)
        for publishes in (lambda: replay(environment), lambda: replay_training(environment, "another")):
            with pytest.raises(Unavailable, match=r"cannot be read now \(Stale file handle\): correct that"):
                publishes()
    # The control: a queue that can be read stops no publication.
    replay_training(environment, "another")


def test_a_queue_that_a_process_sends_is_not_set_aside_for_another_budget(environment, monkeypatch):
    monkeypatch.setattr(keeping, "LONGEST_CALL", 0.1)
    outbox = waiting("one", ({"loss": 1.0}, 1))
    plan, first = SimpleNamespace(folder=outbox.folder.parent), outbox.key
    keeping.set_aside_other_run(plan, "1 image")
    sender = Sender(connect(environment), environment, outbox)
    with outbox.sending(), pytest.raises(Unavailable, match="sends what waits in .*: wait until"):
        keeping.set_aside_other_run(plan, "2 images")
    assert outbox.count_unsent() == len(list(sender.send())) == 3
    # The control, with a sender that has sent the queue before it.
    keeping.set_aside_other_run(plan, "2 images")
    again = waiting("one", ({"loss": 2.0}, 1))
    assert again.folder == outbox.folder
    list(sender.send())
    assert [history(environment, find_run(connect(environment), key), "loss") for key in (first, again.key)] == [
        [(1, 1.0)],
        [(1, 2.0)],
    ]
