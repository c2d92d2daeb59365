"""What happens beside a run when it fails or has promoted a model: an event that any automation of Prefect can act on.

An automation that sends a message, or calls a webhook, on `diffusion.failed` or `diffusion.promoted` is made once on
Prefect's pages, where the address it needs is kept as a secret.
"""

import json
from typing import Any

from prefect import Flow, State, Task
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.events import emit_event

from diffusion_core.stages.paths import PROMOTION

FAILED = "diffusion.failed"
PROMOTED = "diffusion.promoted"


def tell_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Send the sentence about why the run ended."""
    payload = {"flow": flow.name, "state": state.name, "sentence": state.message}
    emit_event(FAILED, _resource(flow_run.id, flow_run.name), payload=payload)


def tell_promotion(task: Task[..., Any], task_run: TaskRun, _: State[Any]) -> None:
    """Send the gate's decision as an event if a model was promoted."""
    decision: dict[str, Any] = json.loads(PROMOTION.read_text(encoding="utf-8"))
    if decision["outcome"] == "promoted":
        emit_event(PROMOTED, _resource(task_run.flow_run_id, task.name), payload=decision)


def _resource(run: object, name: str) -> dict[str, str]:
    return {"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.name": name}
