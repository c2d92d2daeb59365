"""Registers a trained model as a version of the registered model."""

import time
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import version as installed_version
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

import diffusion_core
from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import SampleSettings
from diffusion_core.lineage.model_files import model_digest
from diffusion_core.lineage.promotion import Decision
from diffusion_core.lineage.saved_model import load_model
from diffusion_core.registry import servable
from diffusion_core.registry.connection import sent_once
from diffusion_core.registry.evaluation_table import log_table
from diffusion_core.registry.experiments import experiment_id
from diffusion_core.registry.pages import describe_model, describe_run, describe_version
from diffusion_core.registry.run_files import put_file
from diffusion_core.registry.sending import find_run
from diffusion_core.registry.signature import has_same_names, signature
from diffusion_core.registry.versions import MODEL_DIGEST, SAMPLE, recorded_evaluation

STANDS_IN_FOR = "stands_in_for_run"
REQUIREMENTS = ("mlflow", "numpy", "pandas", "safetensors", "torch", "tqdm")


def register(
    client: MlflowClient,
    run: Run,
    name: str,
    folder: Path,
    tags: Mapping[str, str],
    sample: SampleSettings | None = None,
) -> ModelVersion:
    """Store the model in `folder` as an output of `run`, and make it a version of the registered model `name`.

    Completes an earlier call that was interrupted.

    Args:
        client: client of the current store.
        run: the run that trained the model; its status does not change.
        name: the registered model; created if needed.
        folder: the folder of `model.safetensors` and `model.json`.
        tags: tags of the version, set at its creation.
        sample: the section `sample` of params.yaml by which the gate judges it; None for a usual one.

    Raises:
        UserError: the model cannot be loaded.
    """
    digest = model_digest(folder)
    model = _stored_model(client, run, digest) or _store_model(client, run, name, folder, digest, sample)
    with sent_once():
        return mlflow.register_model(f"models:/{model}", name, tags={**tags, MODEL_DIGEST: digest})


def record_sample(client: MlflowClient, version: ModelVersion, folder: Path, sample: SampleSettings) -> None:
    """Write how the samples were made to a tag of the version, and make that the defaults of its stored model.

    A model that a former version of this code has stored keeps its parameters, which are others.
    """
    wanted = sample.model_dump_json()
    if version.tags.get(SAMPLE) == wanted:
        return
    stored = mlflow.models.get_model_info(str(version.source)).signature
    new = signature(load_model(folder), sample)
    if stored is not None and stored != new and has_same_names(stored, new):
        mlflow.models.set_signature(str(version.source), new)
    # Last, because it says that the signature is there.
    client.set_model_version_tag(version.name, version.version, SAMPLE, wanted)


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
    client: MlflowClient,
    run: Run,
    figures: Mapping[str, float],
    artifacts: Mapping[str, Iterable[Path]],
    model: str | None = None,
) -> None:
    """Log the metrics of a model, as `log_metrics` does, and the files by artifact folder.

    Args:
        client: client of the current store.
        run: the run.
        figures: the metrics by name.
        artifacts: the files.
        model: id of the stored model whose metrics these are, on the run's dataset; its page then shows them.
    """
    inputs = client.get_run(run.info.run_id).inputs
    used = inputs.dataset_inputs if inputs is not None else []
    of = (model, used[0].dataset.name, used[0].dataset.digest) if used else (model, None, None)
    log_metrics(client, run, figures, *of)
    for folder, files in artifacts.items():
        for file in files:
            client.log_artifact(run.info.run_id, str(file), folder)


def log_metrics(client: MlflowClient, run: Run, figures: Mapping[str, float], *of: str | None) -> None:
    """Log the metrics that the run does not have yet.

    Args:
        client: client of the current store.
        run: the run.
        figures: the metrics by name.
        *of: the stored model's id, and name and digest of the dataset on which it was measured; nothing for metrics of
            the run itself.
    """
    now = time.time_ns() // 1_000_000
    known = client.get_run(run.info.run_id).data.metrics
    # Compared as text, because NaN != NaN.
    changed = {name: value for name, value in figures.items() if str(known.get(name)) != str(value)}
    client.log_batch(run.info.run_id, metrics=[Metric(name, value, now, 0, *of) for name, value in changed.items()])


def log_decision(client: MlflowClient, version: ModelVersion, decision: Decision) -> None:
    """Log the gate's decision to the run that trained the version, and describe run, version and registered model.

    The run gets it as JSON, and in the table of its evaluation.
    """
    run_id = str(version.run_id)
    put_file(client, run_id, f"gate/version-{version.version}.json", decision.model_dump_json(indent=2))
    # A champion's metrics may be newer than the decision on it.
    log_table(client, run_id, recorded_evaluation(version) or decision.grounds.evaluation, decision)
    describe_version(client, version, decision.sentence)
    describe_run(client, client.get_model_version(version.name, version.version))
    describe_model(client, version.name)


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


def _store_model(
    client: MlflowClient, run: Run, name: str, folder: Path, digest: str, sample: SampleSettings | None
) -> str:
    trained = load_model(folder)
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
            signature=signature(trained, sample),
            metadata={"classes": list(trained.class_names)},
            pip_requirements=[f"{each}=={installed_version(each).partition('+')[0]}" for each in REQUIREMENTS],
        )
    return model.model_id
