"""A machine is lost with its disk: another one goes on from the copies in the bucket."""

import hashlib
import os
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch
from safetensors.torch import load_file

from diffusion_core.address import S3Address
from diffusion_core.config.environment import Environment
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.lineage.checkpoints import (
    checkpoints,
    damaged,
    mark_finished,
    mark_unfinished,
    newest_whole_step,
    problem,
)
from diffusion_core.stages import backup, fetching, verify
from diffusion_core.stages import copies as copies_module
from diffusion_core.stages.copies import Copies
from diffusion_core.storage import Object, client, open_store
from diffusion_core.storage import fetching as storage_fetching
from diffusion_core.training.checkpoint import Checkpoint, load_newest, save_checkpoint
from tests.faults.commands import command, is_killed, run, succeeds, wait_for
from tests.storage.conftest import ACCESS, SECRET
from tests.storage.proxy import flip, refuse, send, stall, stall_after

WEIGHTS = "models/model.safetensors"
# Bytes that a download writes at once.
PIECE = storage_fetching.CHUNK


@pytest.fixture
def store_variables(proxy, bucket):
    return {
        "DIFFUSION_S3_ENDPOINT": proxy.url,
        "DIFFUSION_S3_ACCESS_KEY": ACCESS,
        "DIFFUSION_S3_SECRET_KEY": SECRET,
        "DIFFUSION_CHECKPOINT_COPIES": f"s3://{bucket}/copies",
    }


@pytest.fixture
def machine(digits, tmp_path):
    """Makes a machine: a folder with the data and nothing else."""

    def made(name):
        shutil.copytree(digits, tmp_path / name)
        return tmp_path / name

    return made


def keys(admin, bucket):
    return [each["Key"] for each in admin.list_objects_v2(Bucket=bucket).get("Contents", ())]


def until_copied(admin, bucket, seconds=30.0):
    """Wait for the copy by the process that outlives a killed training."""
    end = time.monotonic() + seconds
    while not any(key.endswith("manifest.json") for key in keys(admin, bucket)):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_another_machine_goes_on_bit_for_bit(machine, store_variables, admin, bucket):
    undisturbed, lost, other = map(machine, ("undisturbed", "lost", "other"))
    succeeds(undisturbed, "train")
    is_killed(
        lost,
        "train",
        die_at="diffusion_core.training.trainer:Trainer.tensors:4",
        DIFFUSION_CHECKPOINT_SECONDS="0.001",
        **store_variables,
    )
    until_copied(admin, bucket)
    shutil.rmtree(lost)
    again = succeeds(other, "train", **store_variables)
    assert "train: fetched the checkpoint step-" in again.stdout
    assert "train: resumes after" in again.stdout
    one, two = load_file(undisturbed / WEIGHTS), load_file(other / WEIGHTS)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (undisturbed / "plots/loss.csv").read_text() == (other / "plots/loss.csv").read_text()
    # Control: a third machine without the bucket begins again.
    assert "resumes" not in succeeds(machine("third"), "train").stdout


def test_a_bucket_that_hangs_holds_no_training(machine, store_variables, proxy, admin, bucket):
    folder = machine("folder")
    proxy.trouble(stall, method="PUT", key=".safetensors")
    began = time.monotonic()
    process = subprocess.run(
        command("train"),
        cwd=folder,
        env={**os.environ, "DIFFUSION_DEVICE": "cpu", "DIFFUSION_PRECISION": "float32", **store_variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    proxy.released.set()
    assert process.returncode == 0, process.stderr
    assert (folder / WEIGHTS).exists()
    assert "the last checkpoint is not in s3://" in process.stderr
    assert time.monotonic() - began < 100
    # The next training may remove what was sent, although the last checkpoint never arrived.
    assert "finished" in copied(admin, bucket)
    assert not any(key.endswith("manifest.json") for key in keys(admin, bucket))


def test_a_bucket_that_may_not_be_written_is_told_before_the_training(machine, store_variables, proxy):
    proxy.trouble(refuse(403, "AccessDenied"), method="PUT")
    done = run(machine("folder"), "train", **store_variables)
    assert done.returncode == 2
    assert "DIFFUSION_CHECKPOINT_COPIES is s3://" in done.stderr
    assert "where these credentials may not write" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def copies(proxy, bucket, tmp_path):
    environment = Environment(s3_endpoint=proxy.url, s3_access_key=ACCESS, s3_secret_key=SECRET)

    def made(name="a" * 16, place="here"):
        (tmp_path / place / name).mkdir(parents=True, exist_ok=True)
        return Copies(open_store(environment), S3Address(bucket, "copies/"), tmp_path / place / name)

    return made


def checkpoint(step, **options):
    return Checkpoint(step, {"model": {"w": torch.full((9,), float(step))}}, {"step_note": step}, **options)


def saved(copies, *steps, milestones=()):
    for step in steps:
        save_checkpoint(copies.folder, checkpoint(step, is_milestone=step in milestones))
        copies.send()


def fetched(copies):
    """Fetch as a training does when it begins, and return the names of the folder's checkpoints."""
    copies.fetch(newer_than=newest_whole_step(copies.folder))
    return [path.name for path in checkpoints(copies.folder)]


def name(step):
    return f"step-{step:09d}"


def copied(admin, bucket):
    return {key.split("/")[2] for key in keys(admin, bucket)}


def flip_last(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_copies_are_kept_as_the_checkpoints_are(copies, admin, bucket):
    saved(copies(), 1, 2, 3, 4, milestones=(2,))
    assert copied(admin, bucket) == {name(2), name(3), name(4)}
    there = copies(place="there")
    assert fetched(there) == [name(4)]
    saved(there, 5, 6)
    # A milestone stays although this machine does not have it.
    assert copied(admin, bucket) == {name(2), name(5), name(6)}


def test_a_machine_that_is_behind_removes_no_copies_of_one_that_is_further(copies, admin, bucket):
    further, behind = copies(place="further"), copies(place="behind")
    saved(further, 8, 9)
    saved(behind, 1, 2)
    assert copied(admin, bucket) == {name(1), name(2), name(8), name(9)}
    # The control: what is older than its own goes, and a milestone of its own keeps no others.
    saved(behind, 3, 4, milestones=(3,))
    saved(behind, 5, 6)
    assert copied(admin, bucket) == {name(3), name(5), name(6), name(8), name(9)}


def test_copies_of_finished_trainings_go_when_another_begins(copies, admin, bucket):
    one, other = copies(), copies("b" * 16)
    saved(one, 1, 2, milestones=(1,))
    other.remove_finished()
    assert len([key for key in keys(admin, bucket) if key.endswith("manifest.json")]) == 2
    mark_finished(one.folder)
    one.send()
    other.remove_finished()
    assert copied(admin, bucket) == {name(1)}


def test_copies_of_a_training_that_trains_again_stay(copies, admin, bucket):
    one, other = copies(), copies("b" * 16)
    saved(one, 1)
    mark_finished(one.folder)
    one.send()
    assert copied(admin, bucket) == {name(1), "finished"}
    mark_unfinished(one.folder)
    one.send()
    other.remove_finished()
    assert copied(admin, bucket) == {name(1)}


def test_a_removal_that_breaks_off_is_completed_by_the_next_training(copies, admin, bucket, proxy):
    one, other = copies(), copies("b" * 16)
    saved(one, 1)
    mark_finished(one.folder)
    one.send()
    proxy.trouble(refuse(403, "AccessDenied"), method="DELETE", key="state.json", times=1)
    with pytest.raises(UserError, match="no right to"):
        other.remove_finished()
    assert "finished" in copied(admin, bucket)
    other.remove_finished()
    assert copied(admin, bucket) == set()


def test_a_copy_that_was_interrupted_is_not_sent_from_its_beginning(copies, proxy):
    one = copies()
    save_checkpoint(one.folder, checkpoint(1))
    proxy.trouble(refuse(403, "AccessDenied"), method="PUT", key="manifest.json", times=1)
    with pytest.raises(UserError, match="no right to"):
        one.send()
    one.send()
    assert proxy.count("PUT", "model.safetensors") == 1
    assert proxy.count("PUT", "manifest.json") == 2


def test_a_copy_that_is_not_whole_is_passed_over(copies, admin, bucket, caplog):
    saved(copies(), 1, 2, 3)
    newest, before = (f"copies/{'a' * 16}/{name(step)}" for step in (3, 2))
    admin.delete_object(Bucket=bucket, Key=f"{newest}/manifest.json")
    assert fetched(copies(place="there")) == [name(2)]
    admin.put_object(Bucket=bucket, Key=f"{before}/model.safetensors", Body=b"other")
    assert fetched(copies(place="elsewhere")) == []
    assert f"{name(2)} in s3://" in caplog.text
    assert "is damaged (model.safetensors differs from its manifest): it is not used" in caplog.text


@pytest.mark.parametrize("trouble", [flip(-1), refuse(404, "NoSuchKey")], ids=["other bytes", "removed meanwhile"])
def test_a_copy_that_does_not_arrive_is_passed_over(copies, proxy, trouble, caplog):
    saved(copies(), 1, 2)
    proxy.trouble(trouble, key=f"{name(2)}/model.safetensors")
    assert fetched(copies(place="there")) == [name(1)]
    assert f"the copy of {name(2)} in s3://" in caplog.text
    assert not [*copies(place="there").folder.glob("*.tmp-*")]


def test_a_store_that_fails_is_not_passed_over(copies, proxy, monkeypatch):
    """Beginning with an older copy, or anew, would waste what the newest has."""
    saved(copies(), 1, 2)
    monkeypatch.setattr(client, "ATTEMPTS", 1)
    proxy.trouble(refuse(503, "SlowDown"), key=f"{name(2)}/model.safetensors")
    with pytest.raises(Unavailable):
        fetched(copies(place="there"))


def test_a_rotten_checkpoint_does_not_hide_its_copy(copies, caplog):
    one = copies()
    saved(one, 4, 5)
    flip_last(one.folder / name(5) / "model.safetensors")
    flip_last(one.folder / name(4) / "model.safetensors")
    assert fetched(one) == [name(5), name(4)]
    assert load_newest(one.folder).step == 5
    # The control: without a copy that is whole, no checkpoint is left.
    flip_last(one.folder / name(5) / "model.safetensors")
    with pytest.raises(UserError, match="every checkpoint below .* is damaged"):
        load_newest(one.folder)


@pytest.fixture
def environment(tmp_path, store_variables, monkeypatch):
    """The environment of this process and of those that it starts."""
    for variable, value in store_variables.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(tmp_path)
    return Environment(checkpoints=tmp_path / "here")


def test_verify_repairs_any_checkpoint_from_its_copy(copies, environment, proxy):
    one = copies()
    saved(one, 1, 2)
    rotten = one.folder / name(1)
    flip_last(rotten / "model.safetensors")
    proxy.trouble(refuse(403, "AccessDenied"), key="LIST", times=1)
    (finding,) = verify._checkpoints(environment, repair=True)
    assert not finding.is_repaired
    assert "its copy cannot be fetched (the credentials give no right to" in finding.problem
    assert rotten.exists()
    (finding,) = verify._checkpoints(environment, repair=True)
    assert finding.is_repaired
    assert problem(rotten) is None
    assert len(damaged(one.folder)) == 1
    # What its training has replaced meanwhile is left alone.
    assert verify._restored(environment, rotten)
    assert len(damaged(one.folder)) == 1


@pytest.mark.parametrize("silent", ["the listing", "the body"])
def test_a_bucket_that_is_silent_at_the_start_ends_the_training_in_time(
    copies, environment, proxy, silent, tmp_path, monkeypatch
):
    saved(copies(), 1)
    monkeypatch.setattr(fetching, "SECONDS", 1.0)
    if silent == "the listing":
        proxy.trouble(stall, key="LIST")
    else:
        proxy.trouble(stall_after(50), key="model.safetensors")
    began = time.monotonic()
    with (
        pytest.raises(Unavailable, match="was silent for 1 seconds and may have newer") as error,
        backup.backup(environment, tmp_path / "there" / ("a" * 16)),
    ):
        raise AssertionError("it trains")
    assert time.monotonic() - began < 10
    assert error.value.exit_code == 75
    assert checkpoints(tmp_path / "there" / ("a" * 16)) == []


def test_a_slow_bucket_is_waited_for(copies, environment, proxy, monkeypatch):
    """The control: the limit is for silence, not for a long transfer."""

    def slowly(handler, proxy, status, headers, content):
        send(handler, status, headers, content[:PIECE])
        for start in range(PIECE, len(content), PIECE):
            time.sleep(0.5)
            handler.wfile.write(content[start : start + PIECE])
            handler.wfile.flush()

    slowly.changes_answer = True
    save_checkpoint(copies().folder, Checkpoint(1, {"model": {"w": torch.zeros(5 * PIECE // 4)}}, {}))
    copies().send()
    monkeypatch.setattr(fetching, "SECONDS", 1.5)
    proxy.trouble(slowly, key="model.safetensors")
    began = time.monotonic()
    fetching.fetch_newest(copies(place="there"))
    assert time.monotonic() - began > 2
    assert [path.name for path in checkpoints(copies(place="there").folder)] == [name(1)]


def test_the_process_that_copies_outlives_signals_and_is_started_again(
    copies, environment, admin, bucket, proxy, monkeypatch, caplog
):
    one = copies()
    monkeypatch.setattr(backup, "LOOK", 0.2)
    me = psutil.Process()

    def copier():
        return wait_for(lambda: [each for each in me.children() if "diffusion_core.stages.backup" in each.cmdline()])[0]

    with backup.backup(environment, one.folder):
        first = copier()
        # Before its code could ignore it.
        first.terminate()
        save_checkpoint(one.folder, checkpoint(1))
        wait_for(lambda: "manifest.json" in {key.rpartition("/")[2] for key in keys(admin, bucket)})
        assert caplog.text == ""
        # Nothing changes, so nothing is asked.
        time.sleep(backup.PAUSE)
        before = len(proxy.requests)
        time.sleep(2.5 * backup.PAUSE)
        assert len(proxy.requests) == before
        first.kill()
        wait_for(lambda: "ended with -9: it is started again" in caplog.text)
        save_checkpoint(one.folder, checkpoint(2))
        copier()
    assert copied(admin, bucket) == {name(1), name(2)}
    assert "the last checkpoint is not in" not in caplog.text


def test_the_end_of_a_training_is_sent_while_a_checkpoint_is(copies, environment, admin, bucket, proxy):
    one = copies()
    proxy.trouble(stall, method="PUT", key="model.safetensors", times=1)

    def until_it_is_sent():
        wait_for(lambda: "finished" in copied(admin, bucket), seconds=15)
        names = keys(admin, bucket)
        proxy.released.set()
        return names

    with ThreadPoolExecutor(1) as pool, backup.backup(environment, one.folder):
        save_checkpoint(one.folder, checkpoint(1))
        wait_for(lambda: proxy.count("PUT", "model.safetensors"))
        mark_finished(one.folder)
        sent = pool.submit(until_it_is_sent)
    assert not any(key.endswith("manifest.json") for key in sent.result())
    # Then the copy goes on.
    assert any(key.endswith("manifest.json") for key in keys(admin, bucket))


FILE, PART = r"(?P<file>\w[\w.-]*)", r"step-\d{9}"


@pytest.mark.parametrize(
    ("key", "check"),
    [
        (f"{name(9)}/../../../out", FILE),
        (f"{name(9)}/..", FILE),
        (f"{name(9)}/below/out", FILE),
        ("step-x/manifest.json", PART),
        ("../manifest.json", PART),
    ],
)
def test_keys_of_others_are_none_of_ours(copies, monkeypatch, proxy, key, check, tmp_path):
    saved(copies(), 9)
    there = copies(place="there")
    listed = there.store.objects(there.address.bucket, there.address.prefix)
    body = b"hostile"
    etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
    hostile = Object(f"copies/{'a' * 16}/{key}", len(body), etag)
    monkeypatch.setattr(type(there.store), "objects", lambda *_: [*listed, hostile])
    proxy.trouble(lambda handler, proxy: send(handler, 200, [("ETag", f'"{etag}"')], body), key=hostile.key)
    assert fetched(there) == [name(9)]
    assert {path.name for path in (there.folder / name(9)).iterdir()} == {
        path.name for path in (copies().folder / name(9)).iterdir()
    }
    assert not (tmp_path / "out").exists()
    # The control: without the check of this part of a key, it writes outside of the folder, or fails.
    shutil.rmtree(there.folder / name(9))
    loose = {FILE: "(?P<file>.*)", PART: "[^/]+"}[check]
    monkeypatch.setattr(copies_module, "KEY", re.compile(copies_module.KEY.pattern.replace(check, loose)))
    try:
        fetched(there)
    except (OSError, ValueError):
        return
    assert (tmp_path / "out").read_bytes() == body
