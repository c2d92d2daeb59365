import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from diffusion_core.errors import Unavailable, UserError
from diffusion_core.lineage import checkpoints as lineage
from diffusion_core.lineage.checkpoints import damaged, problem
from diffusion_core.training import checkpoint as module
from diffusion_core.training.checkpoint import Checkpoint, load_newest, save_checkpoint


def checkpoint(step):
    return Checkpoint(
        step, {"model": {"w": torch.full((64,), float(step))}, "ema": {"w": torch.zeros(2)}}, {"note": step}
    )


@pytest.fixture
def folder(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, checkpoint(step))
    return tmp_path


def test_what_was_saved_is_loaded(folder):
    loaded = load_newest(folder)
    assert loaded.step == 2
    assert loaded.state == {"note": 2}
    assert torch.equal(loaded.tensors["model"]["w"], torch.full((64,), 2.0))
    assert load_newest(folder / "nothing") is None


def test_the_newest_two_are_kept(folder):
    for step in (3, 9, 10):
        save_checkpoint(folder, checkpoint(step))
    assert sorted(path.name for path in folder.iterdir()) == ["step-000000009", "step-000000010"]


def test_a_shorter_training_keeps_its_own_two_and_leaves_what_is_further(folder):
    for step in (10, 3, 4, 5):
        save_checkpoint(folder, checkpoint(step))
    assert [int(path.name[5:]) for path in sorted(folder.iterdir())] == [4, 5, 10]
    assert [load_newest(folder, up_to=step).step for step in (5, 9, 10)] == [5, 5, 10]
    assert load_newest(folder, up_to=3) is None


FILES = ["model.safetensors", "ema.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["empty", "half", "last byte", "flip", "gone"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(folder, name, harm, caplog):
    file = folder / "step-000000002" / name
    content = file.read_bytes()
    if harm == "gone":
        file.unlink()
    elif harm == "flip" and name == "manifest.json":
        digest = json.loads(content)["files"]["model.safetensors"]["sha256"]
        file.write_bytes(content.replace(digest[:8].encode(), b"00000000"))
    elif harm == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        keep = {"empty": 0, "half": len(content) // 2, "last byte": len(content.rstrip()) - 1}[harm]
        file.write_bytes(content[:keep])
    assert load_newest(folder).step == 1
    assert (folder / "step-000000002.damaged-0").is_dir()
    assert "step-000000002" in caplog.text


def test_when_all_are_damaged_nothing_is_trained_anew_in_silence(folder):
    for path in folder.iterdir():
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="every checkpoint below .* is damaged"):
        load_newest(folder)
    with pytest.raises(UserError, match="every checkpoint below .* is damaged"):
        load_newest(folder)


def test_what_is_set_aside_takes_a_free_name(folder):
    """Somebody has removed the first of two."""
    (folder / "step-000000002" / "model.safetensors").write_bytes(b"")
    taken = folder / "step-000000002.damaged-1"
    shutil.copytree(folder / "step-000000001", taken)
    assert load_newest(folder).step == 1
    assert {path.name for path in damaged(folder)} == {"step-000000002.damaged-0", taken.name}
    save_checkpoint(folder, checkpoint(2))
    (folder / "step-000000002" / "model.safetensors").write_bytes(b"")
    assert load_newest(folder).step == 1
    assert len(damaged(folder)) == 3


@contextmanager
def no_more_files():
    """This process may open no file."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_checkpoint_that_cannot_be_opened_now_is_not_damaged(folder):
    path = folder / "step-000000002"
    sentence = r"step-000000002 cannot be read now \(Too many open files\): correct that, and run this again"
    with no_more_files(), pytest.raises(Unavailable, match=sentence):
        problem(path)
    assert problem(path) is None


@pytest.mark.parametrize(
    ("number", "raised"),
    [
        *((errno.EMFILE, Unavailable), (errno.ESTALE, Unavailable), (errno.EACCES, UserError)),
        *((errno.EIO, None), (errno.EUCLEAN, None), (errno.EBADMSG, None)),
    ],
)
def test_only_an_error_that_shows_damage_sets_a_checkpoint_aside(folder, monkeypatch, number, raised):
    """The disk's answer is given here, for the newest checkpoint alone; a bad sector is damage of one file."""
    before, open_file = sorted(path.name for path in folder.iterdir()), Path.open

    def refuse(path, *arguments, **options):
        if path == folder / "step-000000002" / "model.safetensors":
            raise OSError(number, os.strerror(number), str(path))
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(lineage, "SECONDS_TO_RECOVER", 0.0)
    if raised is None:
        assert load_newest(folder).step == 1
        assert len(damaged(folder)) == 1
    else:
        with pytest.raises(raised, match=os.strerror(number)):
            load_newest(folder)
        assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors", "state.json"])
@pytest.mark.parametrize("number", [errno.EIO, errno.EBADMSG])
def test_an_error_of_input_that_passes_sets_no_checkpoint_aside(folder, monkeypatch, name, number):
    """As on a network's filesystem. The control: another error of a damaged file is not tried again."""
    pauses, left, open_file = [], [True], Path.open

    def refuse_once(path, *arguments, **options):
        if path == folder / "step-000000002" / name and left:
            left.pop()
            raise OSError(number, os.strerror(number), str(path))
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse_once)
    monkeypatch.setattr(lineage.time, "sleep", pauses.append)
    assert load_newest(folder).step == (2 if number == errno.EIO else 1)
    assert len(damaged(folder)) == (0 if number == errno.EIO else 1)
    assert pauses == ([lineage.SECONDS_TO_RECOVER] if number == errno.EIO else [])


@pytest.mark.parametrize("reader", ["read_json", "load_file"])
def test_a_checkpoint_that_cannot_be_opened_after_it_was_hashed_is_not_damaged(folder, monkeypatch, reader):
    """Whatever the system says, safetensors says that the file is missing."""
    before, read = sorted(folder.iterdir()), getattr(module, reader)

    def read_without_files(path):
        with no_more_files():
            return read(path)

    monkeypatch.setattr(module, reader, read_without_files)
    with pytest.raises(Unavailable, match=r"step-000000002 cannot be read now \("):
        load_newest(folder)
    assert sorted(folder.iterdir()) == before


# Kills itself at the n-th of the operations by which a checkpoint reaches the disk.
KILLED_WHILE_SAVING = textwrap.dedent("""
    import os, pathlib, signal, sys
    sys.path.insert(0, {root!r})
    from tests.training.test_checkpoint import checkpoint
    from diffusion_core.training import checkpoint as module
    from diffusion_core.training.checkpoint import save_checkpoint

    left = int(sys.argv[2])

    def counted(operation):
        def wrapper(*args, **kwargs):
            global left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)
        return wrapper

    os.fsync = counted(os.fsync)
    module.save_tensors = counted(module.save_tensors)
    for name in ("write_text", "rename"):
        setattr(pathlib.Path, name, counted(getattr(pathlib.Path, name)))
    module.shutil.rmtree = counted(module.shutil.rmtree)
    save_checkpoint(pathlib.Path(sys.argv[1]), checkpoint(3))
""")


def test_a_kill_at_any_moment_of_saving_leaves_a_whole_checkpoint(folder, tmp_path_factory):
    script = tmp_path_factory.mktemp("script") / "killed.py"
    script.write_text(KILLED_WHILE_SAVING.format(root=str(Path.cwd())))
    # The last moment is found by trying: then the child is not killed any more.
    seen = set()
    for moment in range(1, 40):
        done = subprocess.run([sys.executable, script, folder, str(moment)], check=False, timeout=120)
        loaded = load_newest(folder)
        seen.add(loaded.step)
        assert torch.equal(loaded.tensors["model"]["w"], torch.full((64,), float(loaded.step)))
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        for step in (1, 2):
            save_checkpoint(folder, checkpoint(step))
    else:
        pytest.fail("the child never finished saving")
    assert 3 in seen
    assert moment > 10
    assert not list(folder.glob("*.tmp-*"))
