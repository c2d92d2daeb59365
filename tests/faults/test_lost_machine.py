"""A machine is lost with its disk: another one goes on from the copies in the bucket, which delays no training."""

import os
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch
from safetensors.torch import load_file

from diffusion_core.config.environment import Environment
from diffusion_core.errors import Unavailable
from diffusion_core.lineage.checkpoints import checkpoints, damaged, mark_finished, problem
from diffusion_core.stages import backup, fetching, verify
from diffusion_core.stages.finding import Hashed
from diffusion_core.storage import fetching as storage_fetching
from diffusion_core.training.checkpoint import Checkpoint, save_checkpoint
from tests.faults.commands import command, is_killed, run, succeeds, wait_for
from tests.faults.copies import checkpoint, copied, flip_last, keys, name, saved
from tests.storage.conftest import ACCESS, SECRET
from tests.storage.proxy import refuse, send, stall, stall_after

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
    for plot in ("plots/loss.csv", "plots/validation.csv"):
        assert (undisturbed / plot).read_text() == (other / plot).read_text()
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
    (finding,) = verify._checkpoints(environment, repair=True, hashed=Hashed())
    assert not finding.is_repaired
    assert "its copy cannot be fetched (the credentials give no right to" in finding.problem
    assert rotten.exists()
    (finding,) = verify._checkpoints(environment, repair=True, hashed=Hashed())
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


def copier():
    """The process that copies, once it has begun."""
    children = psutil.Process().children
    return wait_for(lambda: [each for each in children() if "diffusion_core.stages.backup" in each.cmdline()])[0]


def test_the_process_that_copies_outlives_signals_and_is_started_again(
    copies, environment, admin, bucket, proxy, monkeypatch, caplog
):
    one = copies()
    monkeypatch.setattr(backup, "LOOK", 0.2)
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


def test_a_process_that_copies_and_is_stopped_delays_no_end(copies, environment, monkeypatch, caplog):
    monkeypatch.setattr(backup, "PATIENCE", 0.5)
    monkeypatch.setattr(backup, "LOOK", 0.5)
    with backup.backup(environment, copies().folder):
        stopped = copier()
        stopped.suspend()
        # Without the limit, it would be waited for until it works again.
        rescue = threading.Timer(10.0, stopped.resume)
        rescue.start()
        began = time.monotonic()
    assert time.monotonic() - began < 5.0
    rescue.cancel()
    assert "the last checkpoint is not in" in caplog.text
    wait_for(lambda: not stopped.is_running() or stopped.status() == psutil.STATUS_ZOMBIE)
