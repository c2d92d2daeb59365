"""The experiment that has the runs, and what MLflow's pages show of it first."""

import json

from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE as NOTE

from diffusion_core.address import without_userinfo
from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.registry.connection import ARTIFACTS, artifact_folder, is_server, sent_once, tracking_uri

# Tags that MLflow's pages read: of what kind an experiment is, and a view of its runs in the menu "Views".
KIND, VIEW = "mlflow.experimentKind", "mlflow.sharedViewState.metrics"
COLUMNS = [
    "attributes.`Dataset`",
    "attributes.`Models`",
    *(f"metrics.`{name}`" for name in ("frechet", "frechet_ratio", "coverage_ratio", "recall", "memorisation")),
    "metrics.`validation/loss`",
    "params.`train.images`",
]
TAGS = {
    KIND: "custom_model_development",
    VIEW: json.dumps(
        {"name": "Metrics", "createdAt": 0, "updatedAt": 0, "state": json.dumps({"selectedColumns": COLUMNS})}
    ),
    NOTE: (
        "Trainings of diffusion models. In all charts, **Step is the number of training images**; for system metrics it"
        " counts measurements. The view `Metrics` (above, right) has the evaluation as columns.\n\n"
        "The alias `champion` of the registered model names the version that the gate promoted last, and each version"
        " says why. Among the artifacts of a run are its evaluation, `evaluation/metrics.json`, and its pages"
        " `report.html` and `data.html`."
    ),
}


def experiment_id(client: MlflowClient, environment: Environment) -> str:
    """Return the id of the environment's experiment; create it if needed.

    Raises:
        UserError: the experiment was deleted, or its artifacts are in the folder of another database.
    """
    experiment = client.get_experiment_by_name(environment.experiment)
    if experiment is None:
        uri = tracking_uri(environment)
        location = None if is_server(uri) else artifact_folder(uri).as_uri()
        with sent_once():
            return client.create_experiment(environment.experiment, artifact_location=location, tags=TAGS)
    _check_artifacts(experiment, tracking_uri(environment))
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"the experiment {environment.experiment} was deleted in MLflow: restore it with"
            f" `mlflow experiments restore -x {experiment.experiment_id}`, or set DIFFUSION_EXPERIMENT to another name"
        )
    # It may be of a former version, or made by hand; what somebody wrote stays.
    for tag in TAGS.keys() - experiment.tags.keys():
        client.set_experiment_tag(experiment.experiment_id, tag, TAGS[tag])
    return experiment.experiment_id


def _check_artifacts(experiment: Experiment, uri: str) -> None:
    """Raise an error for a moved or copied database, because MLflow stores the absolute path of its artifacts."""
    if is_server(uri) or not experiment.artifact_location.endswith(f"/{ARTIFACTS}"):
        return
    if experiment.artifact_location != artifact_folder(uri).as_uri():
        raise UserError(
            f"the experiment {experiment.name} keeps its artifacts in {experiment.artifact_location}, and its database"
            f" lies elsewhere now ({without_userinfo(uri)}): move it back, or set DIFFUSION_EXPERIMENT to another name"
        )
