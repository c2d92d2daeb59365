"""A processor with too little memory (RLIMIT_AS): a command ends with one sentence, and no image is to blame."""

import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.data.encoded import encoded
from tests.data.packed import pack, unpacked
from tests.faults.forks import commands
from tests.faults.test_full_disk import NO_STORE

STEPS = "diffusion_core.training.trainer:Trainer.steps"
WORKER = "diffusion_core.data.workers:_follow_parent"
BIG = (5000, 5000)


@pytest.fixture(scope="module")
def project(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    shutil.copytree(digits, folder, dirs_exist_ok=True)
    with commands(lambda command: ["env", f"--chdir={folder}", *command]) as project:
        project.folder = folder
        yield project


def error(done):
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return sentence


def test_a_training_without_memory_is_one_sentence_with_the_keys(project):
    sentence = error(project.run("train", setting={STEPS: "with_memory(original, 0)"}, **NO_STORE))
    assert "memory is too small" in sentence
    assert "train.accumulate" in sentence


def test_without_it_the_training_would_end_with_a_traceback(project):
    """The control: a processor's errors are not known to be about memory."""
    setting = {STEPS: "with_memory(original, 0)", "diffusion_core.errors:NO_MEMORY": "()"}
    done = project.run("train", setting=setting, **NO_STORE)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.fixture
def raw(project):
    """data/raw as a dictionary; afterwards it has the digits alone."""
    digits = unpacked(project.folder / "data/raw")
    yield digits
    pack(project.folder / "data/raw", digits)


def test_an_image_that_does_not_fit_is_no_bad_image(project, raw):
    big = encoded(Image.fromarray(np.full((*BIG, 3), 7, np.uint8)), "PNG")
    pack(project.folder / "data/raw", raw | {"0/big.png": big})
    prepared = project.folder / "data/prepared/dataset.json"
    before = prepared.read_bytes()
    sentence = error(project.run("prepare", setting={WORKER: "with_memory(original, 32)"}))
    assert sentence.startswith("error: prepare: memory is too small to decode 0/big.png: free some, or take ")
    assert prepared.read_bytes() == before
    # The control: it would be put into quarantine.
    unknown = {"diffusion_core.data.decode:_lacks_memory": "lambda error, most: False"}
    project.succeeds("prepare", setting={WORKER: "with_memory(original, 32)", **unknown})
    assert '"quarantined": 1' in prepared.read_text()
    # With memory, it is an image as others are.
    project.succeeds("prepare")
    assert '"quarantined": 0' in prepared.read_text()


def test_hostile_images_are_counted_and_take_bounded_memory(project, raw):
    """A bomb's header, a cut file, no bytes and another program's file; links are left out before, by `ingest`."""
    whole = raw["0/0000.png"]
    hostile = {
        "0/bomb.png": encoded(Image.new("1", (14_200, 14_200)), "PNG"),
        "0/cut.png": whole[: len(whole) // 2],
        "0/empty.png": b"",
        "0/program.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    }
    pack(project.folder / "data/raw", raw | hostile)
    # Else the digits would be taken from the dataset that is there.
    shutil.rmtree(project.folder / "data/prepared")
    done = project.succeeds("prepare", setting={WORKER: "with_memory(original, 64)"})
    assert "1412 images to train, 385 to validate" in done.stdout
    content = yaml.safe_load((project.folder / "data/prepared/dataset.json").read_text())
    assert (content["count"], content["quarantined"]) == (1797, len(hostile))
