"""The evaluation as a table of a run: each metric with interval, floor, ceiling, limits and the champion's value."""

import json
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS

from diffusion_core.lineage.evaluation import Evaluation
from diffusion_core.lineage.promotion import Decision
from diffusion_core.metrics.estimate import SUFFIXES

TABLE = "evaluation/metrics.json"


def log_table(client: MlflowClient, run_id: str, evaluation: Evaluation, decision: Decision | None) -> None:
    """Log the table to a run; MLflow's own `log_table` would append to the one that is there.

    Args:
        client: client of the current store.
        run_id: the run.
        evaluation: the metrics of the run's model.
        decision: the gate's on these metrics, or None before it.
    """
    text = table(evaluation, decision).to_json(orient="split", index=False)
    client.log_text(run_id, text, TABLE)
    logged = json.loads(client.get_run(run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
    entry = {"path": TABLE, "type": "table"}
    if entry not in logged:
        client.set_tag(run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([*logged, entry]))


def table(evaluation: Evaluation, decision: Decision | None) -> pd.DataFrame:
    """Return a row for each metric."""
    grounds = None if decision is None else decision.grounds
    champion = {} if grounds is None or grounds.champion_evaluation is None else grounds.champion_evaluation.estimates
    limits = {} if grounds is None else grounds.gate.limits
    rows = []
    for name, estimate in evaluation.estimates.items():
        columns = [suffix.removeprefix("_") or "value" for suffix in SUFFIXES]
        row: dict[str, Any] = {"metric": name, **dict(zip(columns, estimate.named(name).values(), strict=True))}
        limit = limits.get(name)
        row["at_least"], row["at_most"] = (None, None) if limit is None else (limit.at_least, limit.at_most)
        row["champion"] = champion[name].value if name in champion else None
        rows.append(row)
    return pd.DataFrame(rows)
