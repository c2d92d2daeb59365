"""Sends a queue's entries to the tracking store: each once, and in order."""

import json
import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any

from mlflow import MlflowClient
from mlflow.data import sources
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.types.schema import Array, ColSpec, DataType, Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES

from diffusion_core.config.environment import Environment
from diffusion_core.lineage.entries import Entry
from diffusion_core.lineage.outbox import Outbox
from diffusion_core.lineage.queue_errors import DamagedQueue, RefusedQueue
from diffusion_core.registry.connection import is_transient, reason, sent_once
from diffusion_core.registry.experiments import experiment_id

# Tags of MLflow runs: the queue's key, and the run that a new one replaces.
RUN_KEY = "run_key"
CONTINUES = "continues_missing_run"

# The end of MLflow's name of an image's preview.
PREVIEW = "+compressed.webp"

LONGEST_DIGEST = 36
# Limits of MLflow's call log_batch.
MOST_METRICS, MOST_PARAMS = 1000, 100

_logger = logging.getLogger(__name__)


class Sender:
    """Sends the entries of one queue.

    After a process has died, it is not known whether the store has the entry that was being sent. So the first metrics
    and images are compared with what the store has.

    Args:
        client: client of the store.
        environment: the environment, with the experiment.
        outbox: the queue.
    """

    def __init__(self, client: MlflowClient, environment: Environment, outbox: Outbox) -> None:
        self._client = client
        self._environment = environment
        self._outbox = outbox
        # By run and metric: the queue in this folder may be another run's meanwhile.
        self._last_steps: dict[tuple[str, str], int] = {}

    def send(self) -> Iterator[int]:
        """Send what was not acknowledged, and yield the number of entries after each call of the store.

        Entries of a run that was deleted in MLflow are passed over.

        Raises:
            RefusedQueue: the store refuses an entry, and would refuse it again.
            UserError: the experiment cannot be used.
            MlflowException, OSError: the store does not answer.
        """
        while True:
            try:
                yield from self._send()
                return
            except MlflowException as error:
                if is_transient(error):
                    raise
                passed = self._pass_lost_run()
                if not passed:
                    raise RefusedQueue(
                        f"the tracking store refuses what waits in {self._outbox.folder} ({reason(error)}): correct"
                        " that in MLflow and run `diffusion replay`, or remove the folder"
                    ) from None
                yield passed

    def _send(self) -> Iterator[int]:
        metrics: list[Metric] = []
        count, last = 0, 0
        for number, entry in self._outbox.unsent():
            new = _metrics(entry)
            if metrics and (not new or len(metrics) + len(new) > MOST_METRICS):
                yield from self._log(metrics, count, last)
                metrics, count = [], 0
            if new:
                metrics, count, last = metrics + new, count + 1, number
                continue
            self._take(entry)
            self._outbox.acknowledge(number)
            yield 1
        if metrics:
            yield from self._log(metrics, count, last)

    def _log(self, metrics: list[Metric], count: int, number: int) -> Iterator[int]:
        run = self._run_id()
        for place in {(run, metric.key) for metric in metrics} - self._last_steps.keys():
            history = self._client.get_metric_history(*place)
            self._last_steps[place] = max((metric.step for metric in history), default=-1)
        new, last_steps = [], dict(self._last_steps)
        for metric in metrics:
            if metric.step > last_steps[run, metric.key]:
                last_steps[run, metric.key] = metric.step
                new.append(metric)
        if new:
            self._client.log_batch(run, metrics=new)
        # Only now: what the store refuses is sent again.
        self._last_steps = last_steps
        self._outbox.acknowledge(number)
        yield count

    def _take(self, entry: Entry) -> None:
        if entry["kind"] == "start":
            self._start(entry)
        elif entry["kind"] == "tag":
            self._client.set_tag(self._run_id(), entry["key"], entry["value"])
        elif entry["kind"] == "text":
            self._client.log_text(self._run_id(), entry["content"], entry["file"])
        elif entry["kind"] == "image":
            self._log_image(entry)
        elif entry["kind"] == "end":
            self._client.set_terminated(self._run_id(), entry["status"], entry["time"])
            self._end_doubles(entry["time"])

    def _end_doubles(self, time: int) -> None:
        """End the empty runs that a server made of requests which seemed lost, and take the queue's key from them."""
        for run in find_runs(self._client, self._outbox.key):
            if run.info.run_id != self._outbox.run_id:
                if run.info.status == "RUNNING":
                    self._client.set_terminated(run.info.run_id, "KILLED", time)
                self._client.delete_tag(run.info.run_id, RUN_KEY)

    def _pass_lost_run(self) -> int:
        """Acknowledge what waits for a run that the store lost, up to the next start; return the number of entries.

        A run that is missing may come back, with the right database. So only a deleted one needs no next start.
        """
        run_id = self._outbox.run_id
        stage = None if run_id is None else _stage(self._client, run_id)
        if run_id is None or stage == "active":
            return 0
        count, last = 0, 0
        for number, entry in self._outbox.unsent():
            if entry["kind"] == "start":
                break
            count, last = count + 1, number
        else:
            if stage is None:
                return 0
        if count:
            self._outbox.acknowledge(last)
            _logger.warning("the run %s was deleted in MLflow: %d entries for it are not sent", run_id, count)
        return count

    def _log_image(self, entry: Entry) -> None:
        run, key, step = self._run_id(), entry["key"], entry["step"]
        # MLflow's names of such files begin with key and step; the rest is random.
        begins = tuple(f"images/{key.replace('/', '~')}{mark}step{mark}{step}{mark}" for mark in "%+")
        files = [each.path for each in self._client.list_artifacts(run, "images") if each.path.startswith(begins)]
        if not files:
            self._client.log_image(run, self._outbox.image(entry), key=key, step=step, timestamp=entry["time"])
            return
        # It made three calls, for the image, its preview and the tag. A kill or an error may have come in between.
        if not any(file.endswith(PREVIEW) for file in files):
            self._client.log_image(run, self._outbox.image(entry), f"{files[0].removesuffix('.png')}{PREVIEW}")
        self._client.set_tag(run, MLFLOW_LOGGED_IMAGES, "True")

    def _start(self, entry: Entry) -> None:
        """Create the run or, for a training that resumes, set the one that there is to running."""
        known, key = self._outbox.run_id, self._outbox.key
        run_id = known if known is not None and has_run(self._client, known) else find_run(self._client, key)
        tags = {RUN_KEY: key, **entry["tags"]}
        if run_id is None:
            tags |= {} if known is None else {CONTINUES: known}
            experiment = experiment_id(self._client, self._environment)
            with sent_once():
                run = self._client.create_run(experiment, start_time=entry["time"], tags=resolve_tags(tags))
            run_id = run.info.run_id
        else:
            self._client.update_run(run_id, "RUNNING")
        self._outbox.set_run_id(run_id)
        logged = self._client.get_run(run_id)
        # Somebody may have given the run another name or description since.
        new = {name: value for name, value in tags.items() if name not in logged.data.tags or not _is_mlflows(name)}
        self._client.log_batch(run_id, tags=[RunTag(name, value) for name, value in new.items()])
        missing = iter([Param(*each) for each in entry["params"].items() if each[0] not in logged.data.params])
        while part := list(islice(missing, MOST_PARAMS)):
            self._client.log_batch(run_id, params=part)
        if logged.inputs is None or not logged.inputs.dataset_inputs:
            used = DatasetInput(_mlflow_dataset(entry["dataset"]), [InputTag("mlflow.data.context", "training")])
            self._client.log_inputs(run_id, datasets=[used])

    def _run_id(self) -> str:
        run_id = self._outbox.run_id
        if run_id is None:
            raise DamagedQueue(f"{self._outbox.folder} has no entry that creates its run: remove it")
        return run_id


def find_run(client: MlflowClient, key: str) -> str | None:
    """Return the id of the run with a queue's key, or None."""
    found = find_runs(client, key)
    return found[0].info.run_id if found else None


def find_runs(client: MlflowClient, key: str) -> list[Run]:
    """Return the runs with a queue's key: one or, after a lost answer, more."""
    experiments = [each.experiment_id for each in client.search_experiments()]
    return [*client.search_runs(experiments, f"tags.{RUN_KEY} = '{key}'")]


def has_run(client: MlflowClient, run_id: str) -> bool:
    """Return whether the store has this run and it is not deleted."""
    return _stage(client, run_id) == "active"


def _stage(client: MlflowClient, run_id: str) -> str | None:
    """Return "active" or "deleted", or None for a run that the store does not have."""
    try:
        return str(client.get_run(run_id).info.lifecycle_stage)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def _metrics(entry: Entry) -> list[Metric]:
    if entry["kind"] != "metrics":
        return []
    return [Metric(name, value, entry["time"], entry["step"]) for name, value in entry["values"].items()]


def _is_mlflows(tag: str) -> bool:
    return tag.startswith("mlflow.")


def _mlflow_dataset(dataset: dict[str, Any]) -> Dataset:
    # MLflow creates this class at import time, so mypy does not find it.
    source = sources.LocalArtifactDatasetSource(dataset["source"])  # type: ignore[attr-defined]
    # Entries of former versions have none.
    profile = dataset.get("profile") or {}
    columns: list[ColSpec | TensorSpec] = [ColSpec(Array(Array(Array(DataType.integer))), "image")]
    columns += [ColSpec(DataType.long, "label"), ColSpec(DataType.string, "class")] if "classes" in profile else []
    return Dataset(
        name=dataset["name"],
        digest=(dataset["md5"] or dataset["digest"])[:LONGEST_DIGEST],
        source_type=source._get_source_type(),
        source=source.to_json(),
        schema=json.dumps({"mlflow_colspec": Schema(columns).to_dict()}) if profile else None,
        profile=json.dumps(profile) if profile else None,
    )
