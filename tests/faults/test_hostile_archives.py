"""A checkpoint of somebody else is imported for its weights alone, in no more memory than its file has."""

import copy
import subprocess
import sys
import zipfile

import pytest
import torch

from tests.faults.hostile import MARKER, PICKLE, Touch


def bomb(file):
    """An archive of PyTorch whose program is 1 GB of nothing, compressed."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("archive/data.pkl", "w") as entry:
            for _ in range(64):
                entry.write(bytes(2**24))
        archive.writestr("archive/version", "3\n")


def escaping(file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../data.pkl", PICKLE)
        archive.writestr(f"../{MARKER}/x", "3\n")


def stretched(file):
    """A weight of 4 TB, made of one number."""
    torch.save({"init_conv.weight": torch.zeros(1).expand(10**12)}, file)


def overlapping(file):
    """A hundred entries with the same bytes of the file."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data/0", bytes(2**20))
        (entry,) = archive.filelist
        for number in range(1, 100):
            another = copy.copy(entry)
            another.filename = f"archive/data/{number}"
            archive.filelist.append(another)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (bomb, "it is compressed"),
        (overlapping, "its entries are larger than the file"),
        (stretched, "init_conv.weight, which is larger than its data"),
        (escaping, "is not a checkpoint of weights alone"),
        (lambda file: file.write_bytes(PICKLE), "is not a checkpoint of weights alone"),
        (lambda file: torch.save(Touch(), file), "is not a checkpoint of weights alone"),
    ],
    ids=["bomb", "overlapping", "stretched", "escaping", "pickle", "archive"],
)
def test_a_hostile_checkpoint_of_others_is_refused(tmp_path, is_refused, make, reason):
    make(tmp_path / "model-1.pt")
    assert reason in is_refused(tmp_path, "import", "model-1.pt")
    assert {each.name for each in tmp_path.iterdir()} == {"model-1.pt"}
    assert MARKER not in {each.name for each in tmp_path.parent.iterdir()}


def test_without_the_check_of_archives_the_bomb_takes_its_memory(tmp_path):
    """The control: how much more memory the unsafe way has taken."""
    bomb(tmp_path / "model-1.pt")
    assert (tmp_path / "model-1.pt").stat().st_size < 4 * 2**20
    code = (
        "import resource, torch\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    torch.load('model-1.pt', weights_only=True)\nexcept Exception:\n    pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 2**19
