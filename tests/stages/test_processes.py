"""Several processes share a stage's work: real processes on this machine, started as DIFFUSION_PROCESSES says."""

import csv
import json
import os
import shutil
import signal
import subprocess
from contextlib import suppress

import numpy as np
import psutil
import pytest
import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from diffusion_core.generation import generate
from diffusion_core.lineage.checkpoints import checkpoints
from diffusion_core.lineage.outbox import Outbox
from diffusion_core.lineage.saved_model import load_model
from diffusion_core.metrics.features import FeatureNetwork, extract
from diffusion_core.registry.sending import find_run
from diffusion_core.runtime.device import cores
from diffusion_core.runtime.distributed import Ranks
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.stages.paths import LOSS, METRICS, MODELS, REFERENCE, SAMPLES
from tests.faults import commands
from tests.faults.commands import wait_for
from tests.faults.forks import VARIABLES

pytestmark = pytest.mark.skipif(cores() < 2, reason="two processes need two cores")

STEPS, BATCH = 50, 32


def run(stage, processes, folder, **others):
    return commands.run(folder, stage, DIFFUSION_PROCESSES=str(processes), **others)


def start(stage, processes, folder, **others):
    """Begin a command that the test interrupts."""
    return subprocess.Popen(
        commands.command(stage),
        cwd=folder,
        env={**os.environ, **VARIABLES, "DIFFUSION_PROCESSES": str(processes), **others},
        stderr=subprocess.PIPE,
        text=True,
    )


def steps(folder):
    """The steps of the checkpoints that are whole."""
    return [int(path.name[5:]) for one in (folder / ".checkpoints").glob("*") for path in checkpoints(one)]


def succeeded(*arguments, **others):
    done = run(*arguments, **others)
    assert done.returncode == 0, done.stderr
    return done


def change(folder, **train):
    content = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    content["train"] |= train
    (folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def losses(folder):
    with (folder / LOSS).open(encoding="utf-8") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """The same training by one process and by two, in which every step is reported."""
    folders = {}
    for processes in (1, 2):
        folder = folders[processes] = tmp_path_factory.mktemp(f"by-{processes}")
        shutil.copytree(digits, folder, dirs_exist_ok=True)
        change(folder, images=STEPS * BATCH, report_every_images=BATCH, horizontal_flip=True)
        content = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
        # Masks of dropout are drawn where they are used.
        content["train"]["network"]["dropout"] = 0.0
        content["sample"]["count"] = 25
        (folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        succeeded("train", processes, folder)
    return folders


def test_two_processes_have_the_loss_curve_of_one(trained):
    one, two = losses(trained[1]), losses(trained[2])
    assert len(one) == len(two) == STEPS
    assert two == pytest.approx(one, rel=1e-4)
    # Which is no triviality: the curve is not flat, and another seed has another.
    assert max(one) > 2.0 * min(one)


def test_samples_and_features_do_not_depend_on_who_made_them(trained):
    shutil.copytree(trained[1] / MODELS, trained[2] / MODELS, dirs_exist_ok=True)
    for processes, folder in trained.items():
        for stage in ("sample", "reference", "evaluate"):
            succeeded(stage, processes, folder)
    one, two = (np.load(trained[n] / SAMPLES / "samples.npy").astype(int) for n in (1, 2))
    assert one.shape == two.shape == (25, 8, 8, 1)
    assert np.abs(one - two).max() <= 1
    assert np.abs(one - one[::-1]).max() > 100
    for file in ("extractor", "features"):
        ours, theirs = (load_file(trained[n] / REFERENCE / f"{file}.safetensors") for n in (1, 2))
        # The extractor is trained by one process, which has half of the threads.
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
    figures = [json.loads((trained[n] / METRICS).read_text(encoding="utf-8")) for n in (1, 2)]
    assert figures[1] == pytest.approx(figures[0], rel=0.05)


@pytest.mark.parametrize("batch_size", [1, 16, 250])
def test_an_image_is_the_same_in_every_batch(trained, batch_size):
    model = load_model(trained[1] / MODELS)
    wanted = {"seed": 3, "sampler": DDIM(steps=10)}
    alone, _ = generate(model.diffusion, 20, labels=model.labels(20), batch_size=20, **wanted)
    many, _ = generate(model.diffusion, 250, labels=model.labels(250), batch_size=batch_size, **wanted)
    assert np.abs(many[:20].astype(int) - alone.astype(int)).max() <= 1


def test_shares_are_whole_and_all_there_is():
    for count in (1, 2, 3, 7):
        shares = [Ranks(index, count).share(20) for index in range(count)]
        assert [image for share in shares for image in share] == list(range(20))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_process_extracts_the_features_of_its_share():
    class Second(Ranks):
        def gather(self, rows, total):
            return None

    torch.manual_seed(0)
    network = FeatureNetwork((8, 8), 1, 4)
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), dtype=np.uint8)
    torch.testing.assert_close(extract(network, images, ranks=Second(1, 2)), extract(network, images)[4:])


# --- what can go wrong


@pytest.fixture
def folder(digits, tmp_path):
    shutil.copytree(digits, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_more_processes_than_devices_are_refused(folder):
    for stage in ("train", "sample", "reference", "evaluate"):
        done = run(stage, 1000, folder)
        assert done.returncode == 2
        assert done.stderr.startswith("error: DIFFUSION_PROCESSES is 1000, and this machine has")
        assert "Traceback" not in done.stderr


def test_a_batch_that_cannot_be_shared_out_is_refused_once_and_before_anything_starts(folder):
    change(folder, batch_size=33)
    done = run("train", 2, folder)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "batch_size is 33; it must be a multiple of accumulate, which is 1, times the number of processes" in (
        done.stderr
    )
    assert not (folder / ".checkpoints").exists()


def test_a_mistake_that_all_processes_make_is_told_once(folder):
    done = run("sample", 2, folder)
    assert (done.returncode, done.stderr.count("error: ")) == (2, 1), done.stderr
    assert "model.json is missing" in done.stderr


def test_a_process_that_fails_ends_all_with_its_traceback_first(folder):
    """The second process fails in its fifth step."""
    change(folder, images=10**7)
    (folder / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    from diffusion_core.training.order import Order\n"
        "    whole = Order.batch\n"
        "    def failing(self, step, size):\n"
        "        if step == 5:\n"
        "            raise ZeroDivisionError('on purpose')\n"
        "        return whole(self, step, size)\n"
        "    Order.batch = failing\n",
        encoding="utf-8",
    )
    done = run("train", 2, folder, PYTHONPATH=os.pathsep.join([str(folder), VARIABLES["PYTHONPATH"]]))
    assert done.returncode not in (0, 2)
    first = done.stderr.split("Traceback")[1]
    assert "ZeroDivisionError: on purpose" in first


def test_term_in_a_preview_stops_all_processes_at_its_checkpoint(folder):
    change(folder, images=10**7, preview_every_images=4 * BATCH)
    (folder / "sitecustomize.py").write_text(
        "import os, signal, time\n"
        "if os.environ.get('RANK') == '0':\n"
        "    from diffusion_core.samplers.ddim import DDIM\n"
        "    step, calls = DDIM.step, []\n"
        "    def interrupted(*arguments):\n"
        "        calls.append(1)\n"
        "        if len(calls) == 5:\n"
        "            os.kill(os.getppid(), signal.SIGTERM)\n"
        "            time.sleep(1)\n"
        "        return step(*arguments)\n"
        "    DDIM.step = interrupted\n",
        encoding="utf-8",
    )
    done = run("train", 2, folder, PYTHONPATH=os.pathsep.join([str(folder), VARIABLES["PYTHONPATH"]]))
    assert done.returncode == 143, done.stderr
    assert "Traceback" not in done.stderr
    assert steps(folder) == [4]


@pytest.fixture
def training(folder):
    """A training by two processes that has written its first checkpoint."""
    change(folder, images=10**7, preview_every_images=10**7)
    process = start("train", 2, folder, DIFFUSION_CHECKPOINT_SECONDS="1")
    ranks = []
    try:
        wait_for(lambda: steps(folder) or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        ranks = psutil.Process(process.pid).children()
        yield process, ranks
    finally:
        process.kill()
        process.wait()
        for each in ranks:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def test_a_process_that_is_killed_ends_all_within_half_a_minute(training):
    process, ranks = training
    ranks[1].kill()
    assert process.wait(30) not in (0, 2)
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in ranks)


def test_a_launcher_that_is_killed_takes_its_processes_along(training):
    process, ranks = training
    process.kill()
    _, left = psutil.wait_procs(ranks, timeout=30)
    assert left == []


def test_processes_with_micro_batches_have_the_losses_of_one(folder):
    change(folder, images=8 * BATCH, report_every_images=BATCH, accumulate=4)
    content = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    content["train"]["network"]["dropout"] = 0.0
    (folder / "params.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    curves = []
    for processes in (1, 2):
        succeeded("train", processes, folder)
        curves.append(losses(folder))
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


def test_processes_that_diverge_say_so_once(folder):
    change(folder, images=10**7, learning_rate=1e30, max_grad_norm=1e30)
    done = run("train", 2, folder)
    assert (done.returncode, done.stderr.count("error: ")) == (2, 1), done.stderr
    assert "lower train.learning_rate" in done.stderr
    assert "Traceback" not in done.stderr


def test_term_stops_all_processes_after_the_same_step_and_they_go_on_from_there(training, folder):
    process, ranks = training
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in ranks)
    step = max(steps(folder))
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (outbox,) = (folder / ".checkpoints").glob("*/outbox")
    run_id = find_run(client, Outbox(outbox).key)
    assert client.get_run(run_id).info.status == "KILLED"
    resumed = start("train", 2, folder, DIFFUSION_CHECKPOINT_SECONDS="1")
    try:
        wait_for(lambda: max(steps(folder)) > step or resumed.poll() is not None)
        assert resumed.poll() is None, resumed.stderr.read()
        resumed.send_signal(signal.SIGTERM)
        assert resumed.wait(30) == 143
    finally:
        resumed.kill()
        resumed.wait()
