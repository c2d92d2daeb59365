"""Logs what a model was made of to the run that trained it."""

from collections.abc import Mapping
from itertools import islice

from mlflow import MlflowClient
from mlflow.entities import Param

from diffusion_core.registry.sending import MOST_PARAMS

# The longest value of a parameter that MLflow takes.
LONGEST = 6_000


def log_lineage(client: MlflowClient, run_id: str, files: Mapping[str, str], params: Mapping[str, str]) -> list[str]:
    """Log texts as files of a run, and the parameters that it does not have yet.

    Args:
        client: client of the current store.
        run_id: the run.
        files: texts by their paths among its artifacts; a later one replaces an earlier one.
        params: parameters by dotted name.

    Returns:
        The names of parameters that the run has with other values. MLflow changes none.
    """
    for file, text in files.items():
        client.log_text(run_id, text, file)
    known = client.get_run(run_id).data.params
    values = {name: value[:LONGEST] for name, value in params.items()}
    missing = (Param(name, value) for name, value in values.items() if name not in known)
    while part := list(islice(missing, MOST_PARAMS)):
        client.log_batch(run_id, params=part)
    return sorted(name for name, value in values.items() if known.get(name, value) != value)
