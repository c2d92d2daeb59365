"""TERM to a real flow while its real training is in mid-step, mid-save or mid-preview."""

import shutil
import subprocess
import sys

import pytest
import yaml
from mlflow import MlflowClient

from diffusion_core.lineage.checkpoints import checkpoints, problem
from diffusion_core.lineage.outbox import Outbox
from diffusion_core.registry.sending import find_run
from tests.faults.commands import succeeds
from tests.faults.forks import VARIABLES
from tests.flows.repository import CHECKOUT
from tests.flows.runs import with_our_server
from tests.soak.checks import images

WEIGHTS = "models/model.safetensors"
GRAPH = {"cmd": "python interrupted.py train", "deps": ["data/prepared"], "outs": [WEIGHTS]}

# The flow, whose stages before the training have run.
FLOW = """
import os
import flows.pipeline
from flows import tasks
os.environ["FLOW"] = str(os.getpid())
for name in ("pull", "ingest", "prepare", "reference"):
    setattr(tasks, name, lambda *_: None)
flows.pipeline.main()
"""

# The training. At a call of one of its functions it sends TERM to its flow, and waits there until that is passed on.
INTERRUPTED = """
import importlib, os, signal, time
from pathlib import Path
from diffusion_core.__main__ import main
from diffusion_core.training.stopping import StopRequest

place, at, times = os.environ["INTERRUPT"].split()
module, _, name = place.partition(":")
*path, last = name.split(".")
owner = importlib.import_module(module)
for each in path:
    owner = getattr(owner, each)
original, started, requests, calls = getattr(owner, last), StopRequest.__init__, [], []

def noted(request):
    started(request)
    requests.append(request)

def interrupted(*arguments, **options):
    calls.append(place)
    if len(calls) == int(at):
        for _ in range(int(times)):
            os.kill(int(os.environ["FLOW"]), signal.SIGTERM)
            while requests[0].signal is None:
                time.sleep(0.01)
        # What a second TERM does, it does at once.
        time.sleep(int(times) - 1)
        Path("interrupted").touch()
    result = original(*arguments, **options)
    Path("calls").write_text(str(len(calls)))
    return result

StopRequest.__init__ = noted
setattr(owner, last, interrupted)
main()
"""

STEP, SAVE, PREVIEW = (
    "diffusion_core.training.step:Gradient.attempt",
    "diffusion_core.training.checkpoint:write_json",
    "diffusion_core.samplers.ddim:DDIM.step",
)
# A place with the number of the call, how often TERM is sent, and the steps after which the newest checkpoint may be.
# During a save, training continues by a step or two.
CASES = {
    "in mid-step": (f"{STEP} 3", 1, {3}),
    "in mid-save": (f"{SAVE} 1", 1, {2, 3}),
    "in mid-preview": (f"{PREVIEW} 5", 1, {4}),
    "twice, in mid-save": (f"{SAVE} 1", 2, {2, 3}),
}


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory):
    """A folder in which the training has run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(digits, folder, dirs_exist_ok=True)
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    params["train"]["preview_every_images"] = 4 * params["train"]["batch_size"]
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    succeeds(folder, "train")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def ended(digits, undisturbed, prefect_server, tmp_path_factory):
    """The folder, the exit code and the output of a flow of each case; they run at the same time."""
    running = {}
    for case, (place, times, _) in CASES.items():
        folder = tmp_path_factory.mktemp("project")
        shutil.copytree(digits, folder, dirs_exist_ok=True)
        shutil.copy(undisturbed / "params.yaml", folder)
        (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"train": GRAPH}}), encoding="utf-8")
        (folder / "interrupted.py").write_text(INTERRUPTED, encoding="utf-8")
        shutil.copytree(undisturbed / ".dvc", folder / ".dvc")
        variables = {"INTERRUPT": f"{place} {times}", "DIFFUSION_CHECKPOINT_SECONDS": "0.001"}
        running[case] = (
            folder,
            subprocess.Popen(
                [sys.executable, "-c", FLOW],
                cwd=folder,
                env={**with_our_server(), **VARIABLES, **variables, "PYTHONPATH": str(CHECKOUT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ),
        )
    try:
        outputs = {case: process.communicate(timeout=120)[0] for case, (_, process) in running.items()}
        return {case: (folder, process.returncode, outputs[case]) for case, (folder, process) in running.items()}
    finally:
        for _, process in running.values():
            process.kill()


def run_of(folder):
    """Return the client of a folder's store, and the run of its only training there."""
    (outbox,) = folder.glob(".checkpoints/*/outbox")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return client, client.get_run(find_run(client, Outbox(outbox).key)).info


@pytest.mark.parametrize("case", CASES)
def test_term_to_a_flow_leaves_a_whole_checkpoint_and_the_next_run_resumes_from_it(ended, undisturbed, case):
    folder, code, output = ended[case]
    assert code == 143, output
    # The control: TERM reached the training in that place.
    assert (folder / "interrupted").exists(), output
    (training,) = folder.glob(".checkpoints/*")
    newest, *_ = checkpoints(training)
    assert problem(newest) is None
    assert int(newest.name[5:]) in CASES[case][2]
    assert f"stopped after {32 * int(newest.name[5:])} images" in output
    assert not (folder / WEIGHTS).exists()
    if case == "in mid-preview":
        # No step of the preview follows.
        assert (folder / "calls").read_text() == "4"
    succeeds(folder, "replay")
    client, run = run_of(folder)
    assert run.status == "KILLED"
    assert f"resumes after {32 * int(newest.name[5:])} images" in succeeds(folder, "train").stdout
    assert (folder / WEIGHTS).read_bytes() == (undisturbed / WEIGHTS).read_bytes()
    assert run_of(folder)[1].run_id == run.run_id
    assert run_of(folder)[1].status == "FINISHED"
    other, wanted = run_of(undisturbed)
    assert images(client, run.run_id) == images(other, wanted.run_id)
