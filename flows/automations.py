"""What the Prefect server does by itself: it notices runs that died without a word, and starts them again.

A killed machine reports nothing, and its run would be running for ever, with the next one waiting behind it. A run that
is started again goes on from its checkpoint.
"""

from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

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
