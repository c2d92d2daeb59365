"""Registers a trained model as a version of the registered model."""

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
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.types.schema import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

import diffusion_core
from diffusion_core.config.environment import Environment
from diffusion_core.lineage.model_files import model_digest
from diffusion_core.lineage.promotion import Decision
from diffusion_core.lineage.saved_model import load_model
from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.registry import servable
from diffusion_core.registry.connection import experiment_id, sent_once
from diffusion_core.registry.sending import find_run
from diffusion_core.registry.versions import MODEL_DIGEST

STANDS_IN_FOR = "stands_in_for_run"
REQUIREMENTS = ("mlflow", "numpy", "pandas", "safetensors", "torch", "tqdm")


def register(client: MlflowClient, run: Run, name: str, folder: Path, tags: Mapping[str, str]) -> ModelVersion:
    """Store the model in `folder` as an output of `run`, and make it a version of the registered model `name`.

    Completes an earlier call that was interrupted.

    Args:
        client: client of the current store.
        run: the run that trained the model; its status does not change.
        name: the registered model; created if needed.
        folder: the folder of `model.safetensors` and `model.json`.
        tags: tags of the version, set at its creation.

    Raises:
        UserError: the model cannot be loaded.
    """
    digest = model_digest(folder)
    model = _stored_model(client, run, digest) or _store_model(client, run, name, folder, digest)
    with sent_once():
        return mlflow.register_model(f"models:/{model}", name, tags={**tags, MODEL_DIGEST: digest})


def original_run(client: MlflowClient, environment: Environment, run_key: str) -> Run:
    """Return the run that trained the model or, if this store does not have it, a substitute run."""
    run_id = find_run(client, run_key)
    if run_id is not None:
        return client.get_run(run_id)
    experiment = experiment_id(client, environment)
    found = client.search_runs([experiment], f"tags.{STANDS_IN_FOR} = '{run_key}'", max_results=1)
    if found:
        run = found[0]
    else:
        with sent_once():
            run = client.create_run(experiment, tags={STANDS_IN_FOR: run_key})
    if run.info.status == "RUNNING":
        client.set_terminated(run.info.run_id)
    return run


def log_evaluation(
    client: MlflowClient, run: Run, figures: Mapping[str, float], artifacts: Mapping[str, Iterable[Path]]
) -> None:
    """Log the metrics that the run does not have yet, and the files by artifact folder."""
    now = time.time_ns() // 1_000_000
    logged = client.get_run(run.info.run_id).data.metrics
    # Compared as text, because NaN != NaN.
    changed = {name: value for name, value in figures.items() if str(logged.get(name)) != str(value)}
    client.log_batch(run.info.run_id, metrics=[Metric(name, value, now, 0) for name, value in changed.items()])
    for folder, files in artifacts.items():
        for file in files:
            client.log_artifact(run.info.run_id, str(file), folder)


def log_decision(client: MlflowClient, version: ModelVersion, decision: Decision) -> None:
    """Log the gate's decision as JSON to the run that trained the version, and describe the version by its sentence."""
    if version.description == decision.sentence:
        return
    client.log_dict(str(version.run_id), decision.model_dump(mode="json"), f"gate/version-{version.version}.json")
    # Last, because it says that the file is there.
    client.update_model_version(version.name, version.version, description=decision.sentence)


def _stored_model(client: MlflowClient, run: Run, digest: str) -> str | None:
    """Return the id of the stored model with this digest, or None; delete models with an incomplete upload."""
    stored = None
    for model in client.search_logged_models([run.info.experiment_id], f"tags.{MODEL_DIGEST} = '{digest}'"):
        if model.status == LoggedModelStatus.READY:
            stored = model.model_id
        else:
            # First, because the disk may be full.
            get_artifact_repository(model.artifact_location).delete_artifacts()  # type: ignore[no-untyped-call]
            client.delete_logged_model(model.model_id)
    return stored


def _store_model(client: MlflowClient, run: Run, name: str, folder: Path, digest: str) -> str:
    diffusion = load_model(folder).diffusion
    with sent_once():
        model = client.create_logged_model(
            run.info.experiment_id, name, source_run_id=run.info.run_id, tags={MODEL_DIGEST: digest}
        )
    with warnings.catch_warnings():
        # With an input example, MLflow would sample images immediately.
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
    """Return the schema of input, output and parameters, with defaults that are valid for every model."""
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
