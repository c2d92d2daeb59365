"""What the store knows of runs that are compared: versions of the registered model, or runs by their ids."""

from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.lineage.evaluation import Evaluation
from diffusion_core.lineage.identity import as_in_yaml
from diffusion_core.registry.champions import recorded_decision
from diffusion_core.registry.connection import run_page
from diffusion_core.registry.published import TAGS, cost_of
from diffusion_core.registry.run_files import run_file
from diffusion_core.registry.version_names import registered_name
from diffusion_core.registry.versions import RUN_ID, find_named, recorded_evaluation, versions_of_run

SAMPLES = "samples/grid.png"
# Tags of a run that say where it comes from, by what they are called on a page.
ORIGIN = {"git_commit": "commit", "dataset_md5": "data, DVC's md5", "dataset_digest": "data, sha256"}


@dataclass(frozen=True)
class Compared:
    """A run, and the version that it made if there is one.

    Attributes:
        title: what it is called.
        decision: the gate's sentence, or empty.
        evaluation: the metrics of its samples, or None.
        params: its parameters by dotted name.
        cost: of the training, by name.
        page: address of the run.
        origin: where it comes from, by name.
        series: the points of each metric of the training: images, seconds from the begin of the run, and the value.
        samples: a PNG file with its samples, or None.
    """

    title: str
    decision: str
    evaluation: Evaluation | None
    params: dict[str, str]
    cost: dict[str, str]
    page: str
    origin: dict[str, str]
    series: dict[str, list[tuple[float, float, float]]]
    samples: bytes | None


def compared(client: MlflowClient, environment: Environment, names: list[str], metrics: list[str]) -> list[Compared]:
    """Return the runs with these names.

    Args:
        client: client of the current store.
        environment: the environment, with the registered model.
        names: versions, as `registered_name` takes them, or ids of runs.
        metrics: names of the metrics whose series are wanted.

    Raises:
        UserError: a name has no version and no run.
    """
    return [_compared(client, environment, name, metrics) for name in names]


def _compared(client: MlflowClient, environment: Environment, name: str, metrics: list[str]) -> Compared:
    if RUN_ID.fullmatch(name):
        run = _run(client, name)
        made = versions_of_run(client, run.info.run_id)
        version = max(made, key=lambda each: int(each.version), default=None)
    else:
        version = find_named(client, *registered_name(environment, name))
        run = _run(client, str(version.run_id))
    tags = run.data.tags | ({} if version is None else version.tags)
    title = run.info.run_name or run.info.run_id
    if version is not None:
        is_alias = name not in (str(version.version), f"{version.name}/{version.version}", run.info.run_id)
        title = f"{version.name}, version {version.version}" + (f" ({name})" if is_alias else "")
    return Compared(
        title=title,
        decision=_decision(version),
        evaluation=None if version is None else recorded_evaluation(version),
        params={param: as_in_yaml(value) for param, value in run.data.params.items()},
        cost=cost_of(run),
        page=run_page(environment, run.info.experiment_id, run.info.run_id),
        origin=_origin(tags),
        series={metric: _series(client, run, metric) for metric in metrics if metric in run.data.metrics},
        samples=run_file(client, run, SAMPLES),
    )


def _origin(tags: dict[str, str]) -> dict[str, str]:
    found = {shown: tags[tag] for tag, shown in (ORIGIN | TAGS).items() if tag in tags}
    if tags.get("git_dirty") == "true":
        found["commit"] = f"{found.get('commit', 'unknown')}, with changes"
    return found


def _run(client: MlflowClient, run_id: str) -> Run:
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(f"this store has no run {run_id}: name a version, an alias or the id of another run") from None


def _decision(version: ModelVersion | None) -> str:
    decision = None if version is None else recorded_decision(version)
    return "" if decision is None else decision.sentence


def _series(client: MlflowClient, run: Run, metric: str) -> list[tuple[float, float, float]]:
    begun = run.info.start_time or 0
    found = client.get_metric_history(run.info.run_id, metric)
    # MLflow's step is the number of images.
    return sorted((float(each.step), (each.timestamp - begun) / 1000, each.value) for each in found)
