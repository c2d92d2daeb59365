"""Checkpoints are written behind the training, and nothing that goes wrong there is lost."""

import math
import os
import threading
from pathlib import Path

import pytest
import torch

from diffusion_core.lineage.checkpoints import MANIFEST, checkpoints, step_of
from diffusion_core.training import checkpoint as checkpoint_module
from diffusion_core.training import saving
from diffusion_core.training.checkpoint import Checkpoint, load_newest
from diffusion_core.training.divergence import TrainingDiverged, check_finite
from diffusion_core.training.saving import Saver


def checkpoint(step, value=None, **options):
    weights = torch.full((64, 3), float(step if value is None else value))
    return Checkpoint(
        step, {"model": {"w": weights}, "ema": {"count": torch.tensor(step)}}, {"rows": [step]}, **options
    )


@pytest.fixture
def gate(monkeypatch):
    """Lets checkpoints be written only once it is set."""
    opened = threading.Event()
    save = saving.save_checkpoint

    def waits(*arguments):
        assert opened.wait(60)
        return save(*arguments)

    monkeypatch.setattr(saving, "save_checkpoint", waits)
    return opened


def test_saving_returns_before_anything_is_written_and_the_end_waits_for_it(tmp_path, gate):
    with Saver(tmp_path) as saver:
        saver.save(checkpoint(1))
        assert checkpoints(tmp_path) == []
        saver.check()
        gate.set()
    assert load_newest(tmp_path).step == 1


def test_what_training_changes_meanwhile_is_not_in_the_checkpoint(tmp_path, gate):
    now = checkpoint(1)
    with Saver(tmp_path) as saver:
        saver.save(now)
        now.tensors["model"]["w"].fill_(7.0)
        now.state["rows"].append(2)
        gate.set()
    loaded = load_newest(tmp_path)
    assert torch.equal(loaded.tensors["model"]["w"], torch.full((64, 3), 1.0))
    assert loaded.state == {"rows": [1]}


def test_without_copies_it_would_be(tmp_path, gate, monkeypatch):
    """The control."""
    monkeypatch.setattr(Saver, "_copied", lambda self, part, name, tensor: tensor)
    now = checkpoint(1)
    with Saver(tmp_path) as saver:
        saver.save(now)
        now.tensors["model"]["w"].fill_(7.0)
        gate.set()
    assert torch.equal(load_newest(tmp_path).tensors["model"]["w"], torch.full((64, 3), 7.0))


def test_the_thread_that_writes_computes_alone_and_changes_nothing_for_the_training(tmp_path, monkeypatch):
    """A second team of threads would halve the training's speed."""
    save, threads = saving.save_checkpoint, []

    def counts(*arguments):
        threads.append(torch.get_num_threads())
        return save(*arguments)

    monkeypatch.setattr(saving, "save_checkpoint", counts)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Saver(tmp_path) as saver:
            saver.save(checkpoint(1))
            saver.wait()
            assert torch.get_num_threads() == 2
        assert threads == [1]
    finally:
        torch.set_num_threads(before)


def test_a_second_checkpoint_waits_for_the_first_and_memory_is_used_again(tmp_path, gate):
    with Saver(tmp_path) as saver:
        saver.save(checkpoint(1))
        threading.Timer(0.3, gate.set).start()
        saver.save(checkpoint(2))
        assert step_of(checkpoints(tmp_path)[0]) == 1
        saver.wait()
        assert len(saver._copies) == 2
    assert load_newest(tmp_path).step == 2


def test_a_disk_that_refuses_is_told_at_the_next_step_and_at_the_end(tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError(28, os.strerror(28), "x")

    monkeypatch.setattr(checkpoint_module, "save_tensors", refuses)
    with pytest.raises(OSError, match="No space left"), Saver(tmp_path) as saver:
        saver.save(checkpoint(1))
    with Saver(tmp_path) as saver:
        saver.save(checkpoint(1))
        saver._pool.shutdown()
        with pytest.raises(OSError, match="No space left"):
            saver.check()
        saver.check()
    assert [*tmp_path.iterdir()] == []
    # What ended the block is not hidden by the disk.
    saver = Saver(tmp_path)
    saver.save(checkpoint(1))
    saver.__exit__(ZeroDivisionError, ZeroDivisionError(), None)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_state_that_is_not_finite_is_not_written(tmp_path, value):
    with Saver(tmp_path) as saver:
        saver.save(checkpoint(1))
        saver.save(checkpoint(2, value))
        with pytest.raises(TrainingDiverged, match="the weights after step 2 are not finite"):
            saver.wait()
    assert load_newest(tmp_path).step == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_among_many_is_found_in_every_type(value, dtype):
    for count in (1, 7, 10_001):
        tensor = torch.randn(count).to(dtype)
        check_finite([torch.empty(0), torch.tensor(3), torch.tensor([True]), tensor], 1)
        tensor[torch.randint(count, ())] = value
        with pytest.raises(TrainingDiverged):
            check_finite([torch.empty(0), tensor], 1)


def flipped(at):
    """Flip a bit of a byte."""

    def harm(content):
        content[at] ^= 1
        return content

    return harm


@pytest.mark.parametrize(
    "harm",
    [
        flipped(-1),
        flipped(0),
        flipped(7),
        lambda content: content.replace(b"F32", b"I32"),
        lambda content: content.replace(b"[64,3]", b"[3,64]"),
        lambda content: content.replace(b"data_offsets", b"data_offsetz"),
        lambda content: content + b"\0",
        lambda content: content[:-8],
    ],
    ids=["data", "length", "great length", "type", "shape", "key", "longer", "shorter"],
)
def test_what_the_disk_gives_back_differently_is_no_checkpoint(harm, tmp_path, monkeypatch):
    """It is read back and compared with what is in memory; the hash alone would be that of the wrong file."""
    write = checkpoint_module.save_tensors

    def harms(tensors, file):
        write(tensors, file)
        file.write_bytes(harm(bytearray(file.read_bytes())))

    monkeypatch.setattr(checkpoint_module, "save_tensors", harms)
    with pytest.raises(OSError, match="what was written is read back differently"), Saver(tmp_path) as saver:
        saver.save(checkpoint(1))
    assert [*tmp_path.iterdir()] == []


def test_a_state_that_the_disk_gives_back_differently_is_no_checkpoint(tmp_path, monkeypatch):
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, content: write(path, content.replace(b"1", b"7")))
    with pytest.raises(OSError, match="what was written is read back differently"), Saver(tmp_path) as saver:
        saver.save(checkpoint(1))
    assert [*tmp_path.iterdir()] == []


def test_the_newest_are_kept_by_number_and_milestones_for_good(tmp_path):
    with Saver(tmp_path, keep=3) as saver:
        for step in range(1, 9):
            saver.save(checkpoint(step, is_milestone=step in (2, 4)))
    assert [step_of(each) for each in checkpoints(tmp_path)] == [8, 7, 6, 4, 2]
    assert all((each / MANIFEST).exists() for each in checkpoints(tmp_path))
    assert load_newest(tmp_path).step == 8
