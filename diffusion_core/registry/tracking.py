"""The training run in MLflow: its parameters, data, metrics by step, and final status."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import mlflow
import numpy as np
import numpy.typing as npt
from mlflow import MlflowClient
from mlflow.data import sources
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from diffusion_core.address import without_userinfo
from diffusion_core.config.environment import Environment
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.lineage.provenance import DatasetVersion
from diffusion_core.registry.connection import (
    answering,
    connect,
    experiment_id,
    is_transient,
    reason,
    tracking_uri,
)

LONGEST_DIGEST = 36

_logger = logging.getLogger(__name__)


class Run:
    """An open run.

    While the store does not answer, entries are kept, and later sent in order before newer ones.

    Args:
        client: client of the store.
        run_id: MLflow's id of the run.
        store: address of the store, for messages.
        resumed: whether the run may have metrics already, which are not logged again.

    Attributes:
        id: MLflow's id of the run.
    """

    def __init__(self, client: MlflowClient, run_id: str, store: str, *, resumed: bool = False) -> None:
        self.id = run_id
        self._client = client
        self._store = store
        self._unsent: deque[Callable[[], object]] = deque()
        self._resumed = resumed
        self._last_steps: dict[str, int] = {}

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of one step."""
        now = time.time_ns() // 1_000_000
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._unsent.append(lambda: self._log(metrics))
        self._send()

    def _log(self, metrics: list[Metric]) -> None:
        """Log the metrics that the run does not have, because a resumed training repeats its last steps."""
        for name in {metric.key for metric in metrics} - self._last_steps.keys() if self._resumed else ():
            history = self._client.get_metric_history(self.id, name)
            self._last_steps[name] = max((metric.step for metric in history), default=-1)
        new = [metric for metric in metrics if metric.step > self._last_steps.get(metric.key, -1)]
        if new:
            self._client.log_batch(self.id, metrics=new)
            self._last_steps |= {metric.key: metric.step for metric in new}

    def image(self, image: npt.NDArray[np.uint8], key: str, step: int) -> None:
        """Log an image, uint8 (H, W, C) with 1, 3 or 4 channels; MLflow shows the images of a key as a series."""
        self._unsent.append(lambda: self._client.log_image(self.id, image, key=key, step=step))
        self._send()

    def tag(self, key: str, value: str) -> None:
        """Set a tag."""
        self._unsent.append(lambda: self._client.set_tag(self.id, key, value))
        self._send()

    def finish(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED.

        Raises:
            Unavailable: the store does not answer.
        """
        self._send()
        if self._unsent:
            _logger.warning("%d entries of the MLflow run %s were never taken", len(self._unsent), self.id)
        try:
            mlflow.end_run(status)
        except (MlflowException, OSError) as error:
            raise Unavailable(
                f"the tracking store {self._store} no longer answers ({reason(error)}), so that the end of the run"
                f" {self.id} is not recorded: start it and run this again"
            ) from None

    def _send(self) -> None:
        waited = len(self._unsent) > 1
        while self._unsent:
            send = self._unsent.popleft()
            try:
                send()
            except (MlflowException, OSError) as error:
                if not is_transient(error):
                    raise
                self._unsent.appendleft(send)
                if not waited:
                    _logger.warning(
                        "the tracking store %s does not answer (%s); what is logged waits", self._store, reason(error)
                    )
                return


@contextmanager
def training_run(
    environment: Environment,
    *,
    run_id: str | None,
    params: Mapping[str, object],
    dataset: DatasetVersion,
    tags: Mapping[str, str],
) -> Iterator[Run]:
    """Open a run for the block: a new one, or `run_id` if the store has it.

    The final status is FINISHED, KILLED after SystemExit or KeyboardInterrupt, or FAILED after other exceptions. A new
    run that replaces a missing one has the tag `continues_missing_run`.

    Args:
        environment: the environment, with store and experiment.
        run_id: the run to resume, or None.
        params: parameters, logged with dotted names (`train.network.dim`).
        dataset: the training data, logged as an input.
        tags: tags of the run.

    Raises:
        UserError: the store cannot be used, or the run to resume has other parameters.
    """
    client = connect(environment)
    store = without_userinfo(tracking_uri(environment))
    tags = dict(tags)
    with answering(environment):
        if run_id is not None and not has_run(client, run_id):
            tags["continues_missing_run"] = run_id
            run_id = None
        unlogged = flattened(params) if run_id is None else _unlogged(client, run_id, flattened(params))
        experiment = experiment_id(client, environment) if run_id is None else None
        active = mlflow.start_run(run_id=run_id, experiment_id=experiment, tags=tags, log_system_metrics=True)
    run = Run(client, active.info.run_id, store, resumed=run_id is not None)
    try:
        with answering(environment):
            mlflow.log_params(unlogged)
            mlflow.log_input(_mlflow_dataset(dataset), context="training")
        yield run
    except BaseException as error:
        try:
            run.finish("KILLED" if isinstance(error, SystemExit | KeyboardInterrupt) else "FAILED")
        except UserError as error:
            # The exception of the block is raised; the failure to record its end is only logged.
            _logger.warning("%s", error)
        raise
    run.finish("FINISHED")


def has_run(client: MlflowClient, run_id: str) -> bool:
    """Return whether the store has this run and it is not deleted."""
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        raise


def flattened(params: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return nested parameters as strings with dotted names."""
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = str(value)
    return flat


def _unlogged(client: MlflowClient, run_id: str, params: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters that the run does not have yet.

    Raises:
        UserError: the run has another value of a parameter.
    """
    logged: dict[str, str] = client.get_run(run_id).data.params
    for name, value in params.items():
        if logged.get(name, value) != value:
            raise UserError(
                f"the MLflow run {run_id} was started with {name} {logged[name]}, and it is {value} now: set it back,"
                " or remove the checkpoints of this training to train again"
            )
    return {name: value for name, value in params.items() if name not in logged}


def _mlflow_dataset(dataset: DatasetVersion) -> MetaDataset:
    # MLflow creates this class at import time, so mypy does not find it.
    source = sources.LocalArtifactDatasetSource(dataset.source)  # type: ignore[attr-defined]
    digest = (dataset.md5 or dataset.digest)[:LONGEST_DIGEST]
    return MetaDataset(source, name=dataset.name, digest=digest)  # type: ignore[abstract]
