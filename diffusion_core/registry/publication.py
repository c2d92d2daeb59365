"""A trained model becomes a version of the registered model."""

import time
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import version as installed_version
from pathlib import Path

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import diffusion_core
from diffusion_core.config.environment import Environment
from diffusion_core.lineage.saved_model import load_model, model_digest
from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.registry import servable
from diffusion_core.registry.connection import experiment_id
from diffusion_core.registry.tracking import has_run
from diffusion_core.registry.versions import MODEL_DIGEST

STANDS_IN_FOR = "stands_in_for_run"
REQUIREMENTS = ("mlflow", "numpy", "pandas", "safetensors", "torch", "tqdm")


def register(client: MlflowClient, run: Run, name: str, folder: Path, tags: Mapping[str, str]) -> ModelVersion:
    """Store the model in `folder` as an output of `run`, and make it a version of the registered model `name`.

    What an earlier call left unfinished is completed.

    Args:
        client: of the current store.
        run: the run that trained the model; its status stays as it is.
        name: the registered model, which is created the first time.
        folder: holds `model.safetensors` and `model.json`.
        tags: of the version, which has them from its first moment.

    Raises:
        UserError: the model cannot be loaded.
    """
    digest = model_digest(folder)
    model = _stored_model(client, run, digest) or _store_model(client, run, name, folder, digest)
    return mlflow.register_model(f"models:/{model}", name, tags={**tags, MODEL_DIGEST: digest})


def original_run(client: MlflowClient, environment: Environment, run_id: str) -> Run:
    """Return the run that trained the model, or where this store does not have it, one that stands in for it."""
    if has_run(client, run_id):
        return client.get_run(run_id)
    experiment = experiment_id(client, environment)
    found = client.search_runs([experiment], f"tags.{STANDS_IN_FOR} = '{run_id}'", max_results=1)
    if found:
        return found[0]
    run = client.create_run(experiment, tags={STANDS_IN_FOR: run_id})
    client.set_terminated(run.info.run_id)
    return run


def log_evaluation(
    client: MlflowClient, run: Run, figures: Mapping[str, float], artifacts: Mapping[str, Iterable[Path]]
) -> None:
    """Log the figures that the run does not have yet, and files by the folder that they appear in."""
    now = time.time_ns() // 1_000_000
    logged = client.get_run(run.info.run_id).data.metrics
    # As text, because NaN differs from itself.
    changed = {name: value for name, value in figures.items() if str(logged.get(name)) != str(value)}
    client.log_batch(run.info.run_id, metrics=[Metric(name, value, now, 0) for name, value in changed.items()])
    for folder, files in artifacts.items():
        for file in files:
            client.log_artifact(run.info.run_id, str(file), folder)


def _stored_model(client: MlflowClient, run: Run, digest: str) -> str | None:
    """Return the id of the stored model with this digest; those whose upload was cut off are deleted."""
    stored = None
    for model in client.search_logged_models([run.info.experiment_id], f"tags.{MODEL_DIGEST} = '{digest}'"):
        if model.status == LoggedModelStatus.READY:
            stored = model.model_id
        else:
            client.delete_logged_model(model.model_id)
    return stored


def _store_model(client: MlflowClient, run: Run, name: str, folder: Path, digest: str) -> str:
    diffusion = load_model(folder).diffusion
    model = client.create_logged_model(
        run.info.experiment_id, name, source_run_id=run.info.run_id, tags={MODEL_DIGEST: digest}
    )
    with warnings.catch_warnings():
        # MLflow would have an example of the input, and sample images from it here and now.
        warnings.filterwarnings("ignore", message=".*An input example was not provided", category=UserWarning)
        Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            name=name,
            run_id=run.info.run_id,
            model_id=model.model_id,
            python_model=servable.__file__,
            artifacts={"model": str(folder)},
            code_paths=[str(Path(diffusion_core.__file__).parent)],
            signature=_signature(diffusion),
            pip_requirements=[f"{each}=={installed_version(each).partition('+')[0]}" for each in REQUIREMENTS],
        )
    return model.model_id


def _signature(diffusion: GaussianDiffusion) -> ModelSignature:
    """Return the form of input, output and parameters; the defaults are those that every model can take."""
    steps = min(50, diffusion.num_timesteps)
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.long, servable.LABEL, required=False)]),
        outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *diffusion.image_size, diffusion.channels))]),
        params=ParamSchema(
            [
                ParamSpec("n", DataType.long, 16),
                ParamSpec("steps", DataType.long, steps),
                ParamSpec("seed", DataType.long, 0),
                ParamSpec("eta", DataType.double, 0.0),
                ParamSpec("guidance", DataType.double, 1.0),
            ]
        ),
    )
