"""The evaluation as a table of a run: each metric with interval, floor, ceiling, limits and the champion's value."""

import json
import math

from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

from diffusion_core.lineage.evaluation import Evaluation
from diffusion_core.lineage.promotion import Decision
from diffusion_core.metrics.estimate import SUFFIXES
from diffusion_core.registry.run_files import put_file

TABLE = "evaluation/metrics.json"
COLUMNS = ["metric", *(suffix.removeprefix("_") or "value" for suffix in SUFFIXES), "at_least", "at_most", "champion"]


def log_table(client: MlflowClient, run_id: str, evaluation: Evaluation, decision: Decision | None) -> None:
    """Log the table to a run that has another or none; MLflow's own `log_table` would append to the one that is there.

    Args:
        client: client of the current store.
        run_id: the run.
        evaluation: the metrics of the run's model.
        decision: the gate's last on the model, or None before it.
    """
    content = {"columns": COLUMNS, "data": rows(evaluation, decision)}
    put_file(client, run_id, TABLE, json.dumps(content, allow_nan=False))
    logged = json.loads(client.get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    entry = {"path": TABLE, "type": "table"}
    if entry not in logged:
        client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*logged, entry]))


def rows(evaluation: Evaluation, decision: Decision | None) -> list[list[str | float | None]]:
    """Return a row for each metric, with the columns of `COLUMNS`; what is unknown or infinite becomes None.

    So does the champion's value where it was measured in another way than the model's.
    """
    grounds = None if decision is None else decision.grounds
    others = grounds.champion_evaluation if grounds is not None else None
    others = others if others is not None and others.key == evaluation.key else None
    found: list[list[str | float | None]] = []
    for name, estimate in evaluation.estimates.items():
        limit = None if grounds is None else grounds.gate.limits.get(name)
        bounds = (None, None) if limit is None else (limit.at_least, limit.at_most)
        champion = others.estimates[name].value if others is not None and name in others.estimates else None
        values = (*estimate.named(name).values(), *bounds, champion)
        found.append([name, *(None if each is None or not math.isfinite(each) else each for each in values)])
    return found
