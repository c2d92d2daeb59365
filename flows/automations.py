"""Events that runs send, and the automation of the Prefect server that restarts runs which died.

A run sends `diffusion.failed` or `diffusion.promoted`. Whoever wants a message or a webhook on them makes an automation
once on Prefect's pages, where its address is kept as a secret.

A killed machine reports nothing: its run would be running for ever, with the next one waiting behind it. The server
notices its missing heartbeat and starts the run again, which then resumes from its checkpoint.
"""

import json
from datetime import timedelta
from typing import Any

from prefect import Flow, State, Task
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType, TaskRun
from prefect.events import emit_event
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

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


# A run that takes its machine with it would come back for ever; one that could not even start has a count of 0.
STARTS_THAT_ARE_REPEATED = ("1", "2", "3", "4")
# Three heartbeats, whose frequency prefect.yaml sets.
SILENCE = timedelta(seconds=90)

_flow: dict[str, str | list[str]] = {"prefect.resource.role": "flow", "prefect.resource.name": "pipeline"}
_run: dict[str, str | list[str]] = {"prefect.resource.id": "prefect.flow-run.*"}
_ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}


def _change(state: StateType, name: str, message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=state, name=name, message=message, force=False)


AUTOMATIONS = (
    AutomationCore(
        name="diffusion: mark runs that died",
        description="A run that has sent no heartbeat for 90 seconds has crashed.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *_ends},
            match=_run,
            match_related=_flow,
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[_change(StateType.CRASHED, "Crashed", "No heartbeat for 90 seconds.")],
    ),
    AutomationCore(
        name="diffusion: start crashed runs again",
        description="It goes on from its checkpoint; after its fifth start it is left alone.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            match={**_run, "prefect.run-count": [*STARTS_THAT_ARE_REPEATED]},
            match_related=[_flow, {"prefect.resource.role": "deployment"}],
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[_change(StateType.SCHEDULED, "AwaitingRetry", "It crashed, and starts again.")],
    ),
)


def put_automations(client: SyncPrefectClient) -> None:
    """Make the automations on the server, or bring those of the same names up to date."""
    for automation in AUTOMATIONS:
        there = client.read_automations_by_name(automation.name)
        if there:
            client.update_automation(there[0].id, automation)
        else:
            client.create_automation(automation)
