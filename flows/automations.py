"""Events of runs, and the automations of the Prefect server that restart crashed runs.

A run sends `diffusion.failed`, `diffusion.promoted` or `diffusion.refused`, and a message to each address in
DIFFUSION_NOTIFY. Automations on Prefect's pages may react to these events too.

A killed machine reports nothing, so its run would stay in the state Running and block the next run. The server detects
the missing heartbeat and starts the run again, which resumes from its checkpoint.
"""

import json
from datetime import timedelta
from typing import Any

from apprise import NotifyType
from prefect import Flow, State, Task
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType, TaskRun
from prefect.events import emit_event
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.logging.loggers import flow_run_logger, task_run_logger

from diffusion_core.stages.paths import PROMOTION, PUBLICATION
from flows.notices import send

FAILED = "diffusion.failed"
PROMOTED = "diffusion.promoted"
REFUSED = "diffusion.refused"


def notify_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Report that the run failed, and why: an event and a message."""
    payload = {"flow": flow.name, "state": state.name, "sentence": state.message}
    emit_event(FAILED, _resource(flow_run.id, flow_run.name), payload=payload)
    # Prefect writes its own words and the error's class before the sentence.
    sentence = (state.message or state.name or "").rpartition("StageFailed: ")[2]
    send(f"{flow.name} {flow_run.name} failed", sentence, NotifyType.FAILURE, flow_run_logger(flow_run, flow))


def notify_crash(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Send a message that the run was stopped before its end; a killed one sends its message when it starts again."""
    sentence = state.message or state.name or ""
    send(f"{flow.name} {flow_run.name} crashed", sentence, NotifyType.WARNING, flow_run_logger(flow_run, flow))


def notify_decision(task: Task[..., Any], task_run: TaskRun, _: State[Any]) -> None:
    """Report the gate's decision if a model was promoted or refused: an event and a message."""
    decision: dict[str, Any] = json.loads(PROMOTION.read_text(encoding="utf-8"))
    kinds = {"promoted": (PROMOTED, NotifyType.SUCCESS), "refused": (REFUSED, NotifyType.WARNING)}
    if decision["outcome"] in kinds:
        event, kind = kinds[decision["outcome"]]
        emit_event(event, _resource(task_run.flow_run_id, task.name), payload=decision)
        published: dict[str, Any] = json.loads(PUBLICATION.read_text(encoding="utf-8"))
        text = f"{decision['sentence']}\n{published['page']}"
        send(f"{published['model']} was {decision['outcome']}", text, kind, task_run_logger(task_run, task))


def _resource(run: object, name: str) -> dict[str, str]:
    return {"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.name": name}


# Limits restarts, because a run may crash its machine each time; a run that could not start has the count 0.
STARTS_THAT_ARE_REPEATED = ("1", "2", "3", "4")
# Three heartbeats; prefect.yaml sets their frequency.
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
        description="It resumes from its checkpoint; after its fifth start it is left alone.",
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
    """Create the automations on the server, or update those with the same names."""
    for automation in AUTOMATIONS:
        there = client.read_automations_by_name(automation.name)
        if there:
            client.update_automation(there[0].id, automation)
        else:
            client.create_automation(automation)
