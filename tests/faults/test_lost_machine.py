"""A machine is lost with its disk: another one goes on from the copies in the bucket."""

import os
import shutil
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file

from diffusion_core.address import S3Address
from diffusion_core.config.environment import Environment
from diffusion_core.lineage.checkpoints import checkpoints, mark_finished
from diffusion_core.stages.copies import Copies
from diffusion_core.storage import open_store
from diffusion_core.training.checkpoint import Checkpoint, save_checkpoint
from tests.faults.commands import command, is_killed, run, succeeds
from tests.storage.conftest import ACCESS, SECRET
from tests.storage.proxy import refuse, stall

WEIGHTS = "models/model.safetensors"


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


def test_a_bucket_that_hangs_holds_no_training(machine, store_variables, proxy):
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


def test_copies_are_kept_as_the_checkpoints_are(copies, admin, bucket):
    saved(copies(), 1, 2, 3, 4, milestones=(2,))
    assert {key.split("/")[2] for key in keys(admin, bucket)} == {f"step-{step:09d}" for step in (2, 3, 4)}
    there = copies(place="there")
    there.fetch()
    assert [path.name for path in checkpoints(there.folder)] == ["step-000000004"]
    saved(there, 5, 6)
    # A milestone stays although this machine does not have it.
    assert {key.split("/")[2] for key in keys(admin, bucket)} == {f"step-{step:09d}" for step in (2, 5, 6)}


def test_copies_of_finished_trainings_go_when_another_begins(copies, admin, bucket):
    one, other = copies(), copies("b" * 16)
    saved(one, 1, 2, milestones=(1,))
    other.remove_finished()
    assert len([key for key in keys(admin, bucket) if key.endswith("manifest.json")]) == 2
    mark_finished(one.folder)
    one.send()
    other.remove_finished()
    assert {key.split("/")[2] for key in keys(admin, bucket)} == {"step-000000001"}


def test_a_copy_that_is_not_whole_is_passed_over(copies, admin, bucket, caplog):
    saved(copies(), 1, 2, 3)
    newest, before = (f"copies/{'a' * 16}/step-00000000{step}" for step in (3, 2))
    admin.delete_object(Bucket=bucket, Key=f"{newest}/manifest.json")
    there = copies(place="there")
    there.fetch()
    assert [path.name for path in checkpoints(there.folder)] == ["step-000000002"]
    admin.put_object(Bucket=bucket, Key=f"{before}/model.safetensors", Body=b"other")
    elsewhere = copies(place="elsewhere")
    elsewhere.fetch()
    assert checkpoints(elsewhere.folder) == []
    assert "step-000000002 in s3://" in caplog.text
    assert "is damaged (model.safetensors differs from its manifest): it is not used" in caplog.text


@pytest.mark.parametrize("key", ["step-000000009/../../../out", "step-x/manifest.json", "../out", "step-000000009/.."])
def test_keys_of_others_are_none_of_ours(copies, monkeypatch, key, tmp_path):
    mine = copies()
    real = mine.store.objects(mine.address.bucket, "")
    assert real == []
    hostile = type("Listed", (), {"key": f"copies/{'a' * 16}/{key}", "size": 1, "etag": "e"})()
    monkeypatch.setattr(type(mine.store), "objects", lambda *_: [hostile])
    mine.fetch()
    assert checkpoints(mine.folder) == []
    assert not (tmp_path / "out").exists()
