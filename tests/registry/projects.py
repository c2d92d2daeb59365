"""A project's folder as `evaluate` leaves it, with a small untrained model, and an MLflow store for it."""

import atexit
import json
import shutil
import tempfile
from contextlib import chdir
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import EvaluateSettings, PrepareSettings, SampleSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.lineage.evaluation import Evaluation, FiguresOrigin, evaluation_key
from diffusion_core.lineage.model_files import model_digest
from diffusion_core.lineage.record import RunInfo
from diffusion_core.lineage.samples import SamplesOrigin, sampling_key
from diffusion_core.lineage.saved_model import build_model, load_model, save_model
from diffusion_core.metrics.evaluation import Evaluator
from diffusion_core.metrics.features import FeatureNetwork, extract
from diffusion_core.metrics.reference import Reference
from diffusion_core.metrics.views import domain_view
from diffusion_core.pictures import grid, save
from diffusion_core.registry.connection import connect
from diffusion_core.registry.experiments import experiment_id
from diffusion_core.registry.sending import RUN_KEY
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.stages import prepare
from diffusion_core.stages.sample import sample_model
from tests.data.encoded import encoded
from tests.data.packed import pack

SAMPLE = SampleSettings(count=24, seed=3, sampler=DDIM(steps=2))
EVALUATE = EvaluateSettings()
UNKNOWN_RUN = "0" * 32

# For networks this small, a second thread costs more than it brings.
torch.set_num_threads(1)


@cache
def empty_store():
    """The bytes of a new store; migrating one takes seconds, so that is done once."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        # MLflow sets it, and processes that are started later would inherit it.
        patch.setenv("MLFLOW_TRACKING_URI", "")
        connect(Environment(tracking_uri=f"sqlite:///{folder}/mlflow.db"))
        return Path(folder, "mlflow.db").read_bytes()


def new_environment(folder):
    """An environment whose store is new, in `folder`."""
    (folder / "mlflow.db").write_bytes(empty_store())
    return Environment(tracking_uri=f"sqlite:///{folder}/mlflow.db", device="cpu")


def write_model(folder, seed=0, num_classes=3, image_size=(8, 8), timesteps=8, channels=1, classes=()):
    """A model that no training has touched; another seed makes other weights."""
    torch.manual_seed(seed)
    network = {"dim": 8, "dim_mults": (1, 2), "channels": channels, "num_classes": num_classes}
    process = {"image_size": image_size, "timesteps": timesteps, "beta_schedule": "cosine", "weighting": "snr"}
    folder.mkdir(parents=True, exist_ok=True)
    dataset = {"class_counts": [2, 3, 1], "classes": list(classes)}
    save_model(folder, build_model(network, process), network, process, dataset)


def write_run_info(folder, run_key=UNKNOWN_RUN):
    info = RunInfo(
        run_key=run_key,
        dataset_md5="5" * 32 + ".dir",
        dataset_digest="d" * 64,
        git_commit="c" * 40,
        git_dirty=False,
        params_digest="p" * 64,
    )
    info.write(folder / "run_info.json")


@cache
def prepared(image_size, channels):
    """A folder with data/prepared of random images: 80 to train, 40 to validate."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    random = np.random.default_rng(0)
    color, mode = {1: ("grayscale", "L"), 3: ("rgb", "RGB"), 4: ("rgba", "RGBA")}[channels]
    images = {}
    for number in range(120):
        pixels = random.integers(0, 256, (*image_size, channels), dtype=np.uint8)
        split = "train" if number < 80 else "validation"
        images[f"{split}/{number:03d}.png"] = encoded(Image.fromarray(pixels.squeeze(), mode), "PNG")
    with chdir(folder):
        pack(Path("data/raw"), images)
        prepare.run(PrepareSettings(image_size=image_size, color=color, first_folder="split", duplicate_distance=0.0))
    return folder / "data/prepared"


def write_reference(folder, seed=0, image_size=(8, 8), channels=1):
    """Random images beside `folder`, and their features by an extractor that nothing has trained."""
    beside = folder.parent / "prepared"
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(prepared(image_size, channels), beside)
    torch.manual_seed(seed)
    extractor = FeatureNetwork(image_size, channels, 8).eval()
    splits = [ImageDataset.open(beside, split) for split in ("train", "validation")]
    features = [extract(extractor, split.images()) for split in splits]
    folder.mkdir(parents=True, exist_ok=True)
    Reference(extractor, *features, splits[0].info.digest, {}, {}).save(folder)


def evaluate_model(project, sample=SAMPLE, evaluate=EVALUATE):
    """What the stages `sample` and `evaluate` do, in few words."""
    model, reference = load_model(project / "models"), Reference.load(project / "data/reference")
    images, _ = sample_model(model, sample, Environment(device="cpu"))
    for folder in ("samples", "plots", "metrics"):
        (project / folder).mkdir(exist_ok=True)
    save(grid(images, columns=6), project / "samples/grid.png")
    shutil.copy(project / "samples/grid.png", project / "plots/nearest.png")
    real = [ImageDataset.open(project / "data/prepared", split) for split in ("train", "validation")]
    found = Evaluator([domain_view(reference)], *real, evaluate).evaluate(images)
    digest, sampling = model_digest(project / "models"), sampling_key(sample)
    SamplesOrigin(model_digest=digest, sampling_key=sampling, sample=sample).write(project / "samples/origin.json")
    key = evaluation_key(reference.digest, sampling, evaluate)
    evaluation = Evaluation(key=key, counts=found.counts, estimates=found.estimates)
    write_evaluation(project, FiguresOrigin(model_digest=digest, sampling_key=sampling, evaluation=evaluation))


def write_evaluation(project, origin):
    (project / "metrics/evaluate.json").write_text(json.dumps(origin.evaluation.figures))
    origin.write(project / "metrics/origin.json")


def read_evaluation(project):
    return FiguresOrigin.read(project / "metrics/origin.json", "evaluate")


def write_figures(project, **values):
    """Change the values of metrics, and their replicates by as much; `None` leaves a metric out."""
    origin = read_evaluation(project)
    estimates = dict(origin.evaluation.estimates)
    for name, value in values.items():
        if value is None:
            del estimates[name]
        else:
            before = estimates[name]
            shifted = tuple(each + value - before.value for each in before.replicates)
            estimates[name] = before.model_copy(update={"value": value, "replicates": shifted})
    evaluation = origin.evaluation.model_copy(update={"estimates": estimates})
    write_evaluation(project, origin.model_copy(update={"evaluation": evaluation}))


def read_figures(project):
    return json.loads((project / "metrics/evaluate.json").read_text())


def write_project(project, seed=0):
    write_model(project / "models", seed)
    write_run_info(project / "models")
    write_reference(project / "data/reference")
    evaluate_model(project)


def write_trained_project(project):
    """A project whose training has ended a run of its own; return the environment, whose store is new."""
    write_project(project)
    environment = new_environment(project)
    client = connect(environment)
    run = client.create_run(experiment_id(client, environment), tags={RUN_KEY: "k" * 32})
    client.set_terminated(run.info.run_id)
    write_run_info(project / "models", "k" * 32)
    return environment


def published_versions(environment):
    """The registered versions of `diffusion`, the oldest first."""
    found = connect(environment).search_model_versions("name = 'diffusion'")
    return sorted(found, key=lambda version: int(version.version))
