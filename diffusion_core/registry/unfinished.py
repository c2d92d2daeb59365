"""Runs that the store has as RUNNING, and when each was last heard of."""

from collections.abc import Iterator
from dataclasses import dataclass

from mlflow import MlflowClient

from diffusion_core.config.environment import Environment
from diffusion_core.registry.sending import RUN_KEY

# A team has fewer trainings at a time.
MOST = 100


@dataclass(frozen=True)
class Unfinished:
    """A run that has not ended.

    Attributes:
        name: its name and id, for messages.
        run_id: its id.
        key: the key of its queue, or None for a run of another program.
        heard: when it began or last logged a metric, in seconds since 1970.
    """

    name: str
    run_id: str
    key: str | None
    heard: float


def unfinished_runs(client: MlflowClient, environment: Environment) -> Iterator[Unfinished]:
    """Return the runs of the environment's experiment that have not ended, the newest first."""
    experiment = client.get_experiment_by_name(environment.experiment)
    if experiment is None:
        return
    for run in client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'", max_results=MOST):
        # The metrics of `run.data` are values alone.
        times = [metric.timestamp for metric in run.data.to_proto().metrics]
        heard = max([run.info.start_time or 0, *times]) / 1000
        yield Unfinished(f"{run.info.run_name} ({run.info.run_id})", run.info.run_id, run.data.tags.get(RUN_KEY), heard)
