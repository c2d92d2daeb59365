"""Of the copies in a bucket those are kept that a training needs, and those are used that are whole."""

import hashlib
import re
import shutil

import pytest
import torch

from diffusion_core.errors import Unavailable, UserError
from diffusion_core.lineage.checkpoints import checkpoints, mark_finished, mark_unfinished, newest_whole_step
from diffusion_core.stages import copies as copies_module
from diffusion_core.storage import Object, client
from diffusion_core.training.checkpoint import Checkpoint, load_newest, save_checkpoint
from tests.faults.copies import checkpoint, copied, flip_last, keys, name, saved
from tests.storage.proxy import flip, refuse, send, then


def fetched(copies):
    """Fetch as a training does when it begins, and return the names of the folder's checkpoints."""
    copies.fetch(newer_than=newest_whole_step(copies.folder))
    return [path.name for path in checkpoints(copies.folder)]


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


@pytest.fixture
def at_once(monkeypatch):
    """DVC records a model at once."""
    monkeypatch.setattr(copies_module, "SECONDS_TO_RECORD", 0.0)


def test_copies_of_a_model_that_dvc_may_be_recording_stay(copies, admin, bucket, monkeypatch):
    one, other = copies(), copies("b" * 16)
    saved(one, 1)
    mark_finished(one.folder)
    one.send()
    other.remove_finished()
    assert copied(admin, bucket) == {name(1), "finished"}
    # The control.
    monkeypatch.setattr(copies_module, "SECONDS_TO_RECORD", 0.0)
    other.remove_finished()
    assert copied(admin, bucket) == set()


@pytest.mark.usefixtures("at_once")
def test_copies_of_finished_trainings_go_when_another_begins(copies, admin, bucket):
    one, other = copies(), copies("b" * 16)
    saved(one, 1, 2, milestones=(1,))
    other.remove_finished()
    assert len([key for key in keys(admin, bucket) if key.endswith("manifest.json")]) == 2
    mark_finished(one.folder)
    one.send()
    other.remove_finished()
    assert copied(admin, bucket) == {name(1)}


@pytest.mark.usefixtures("at_once")
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


@pytest.mark.usefixtures("at_once")
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


def large(step):
    """A checkpoint that is sent in parts."""
    return Checkpoint(step, {"ema": {"w": torch.zeros(9)}, "model": {"w": torch.full((5 * 2**20,), float(step))}}, {})


def test_a_bucket_that_is_slower_than_the_checkpoints_has_whole_ones(copies, admin, bucket, proxy):
    """The training removes a checkpoint while it is sent, as it has saved two newer ones."""
    one = copies()
    steps = iter(range(1, 40))

    def train(count):
        for _ in range(count):
            save_checkpoint(one.folder, large(next(steps)))

    train(2)
    for newest in (2, 4, 6, 8):
        # At the first request for the newest one.
        proxy.trouble(then(lambda: train(2)), method="PUT", key=".safetensors", times=1)
        one.send()
        assert [path.name for path in checkpoints(one.folder)] == [name(newest + 2), name(newest + 1)]
        assert max(each for each in copied(admin, bucket)) == name(newest)
    # Those that are older go nevertheless, but for one.
    assert copied(admin, bucket) == {name(8), name(6)}
    assert fetched(copies(place="there")) == [name(8)]
    assert load_newest(copies(place="there").folder).tensors["model"]["w"][0] == 8


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
    hostile = Object(f"copies/{'a' * 16}/{key}", len(body), etag, 0.0)
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
