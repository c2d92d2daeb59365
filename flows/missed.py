"""A scheduled run stands for those that were missed, and says so; a run that crashed says that it starts again."""

from datetime import UTC, datetime

from apprise import NotifyType
from prefect import State, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext

from flows.notices import send


def take_over() -> None:
    """Skip the scheduled runs of this deployment that are due too, if a schedule made this run.

    After an outage of the worker there is one for each schedule that was missed. All would do the same, one by one.
    """
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    run, logger = context.flow_run, get_run_logger()
    title = f"{context.flow.name} {run.name}" if context.flow else run.name
    if run.run_count > 1:
        send(f"{title} starts again", f"It is its start {run.run_count}, after a crash.", NotifyType.WARNING, logger)
    if run.deployment_id is None or not run.auto_scheduled:
        return
    client = get_client(sync_client=True)
    due = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[run.deployment_id]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            expected_start_time=FlowRunFilterExpectedStartTime.model_validate({"before_": datetime.now(UTC)}),
        )
    )
    missed = sorted(each.expected_start_time for each in due if each.auto_scheduled and each.expected_start_time)
    for each in due:
        if each.auto_scheduled:
            skipped: State[None] = State(type=StateType.CANCELLED, name="Skipped", message=f"{run.name} stands for it.")
            client.set_flow_run_state(each.id, skipped)
    if missed:
        sentence = f"{len(missed)} more runs were missed since {missed[0]:%Y-%m-%d %H:%M} UTC; this one stands for them"
        logger.warning(sentence)
        send(f"{title} is late", sentence, NotifyType.WARNING, logger)
