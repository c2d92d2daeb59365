"""How far a stage is, as a bar on Prefect's pages."""

import time
from uuid import UUID

import httpx
from prefect import get_run_logger, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from diffusion_core.progress import percent
from flows.user_server import reason

SECONDS_BETWEEN = 10.0
# A stage does not wait longer for a server.
SECONDS_TO_ANSWER = 5.0


class ProgressBar:
    """A progress artifact of the present task, made of the progress lines among its output.

    A task without such a line has none. A server that does not answer costs a stage its bar, and no more.
    """

    def __init__(self) -> None:
        self._artifact: UUID | None = None
        self._sent = -SECONDS_BETWEEN
        self._is_given_up = False

    def take(self, line: str) -> None:
        """Show what a line says, if it is one of progress and the last is 10 seconds ago."""
        found = percent(line)
        if found is not None and time.monotonic() - self._sent >= SECONDS_BETWEEN:
            self._send(found[1], line)

    def finish(self) -> None:
        """Show that the task has ended, if it has a bar."""
        if self._artifact is not None:
            self._send(100.0, "ended")

    def _send(self, value: float, description: str) -> None:
        if self._is_given_up:
            return
        self._sent = time.monotonic()
        try:
            with (
                temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
                get_client(sync_client=True, httpx_settings={"timeout": SECONDS_TO_ANSWER}) as client,
            ):
                if self._artifact is None:
                    made = ArtifactCreate(
                        type="progress",
                        key=f"{runtime.task_run.name}-progress",
                        description=description,
                        data=value,
                        flow_run_id=runtime.flow_run.id,
                        task_run_id=runtime.task_run.id,
                    )
                    self._artifact = client.create_artifact(made).id
                else:
                    client.update_artifact(self._artifact, ArtifactUpdate(data=value, description=description))
        except (httpx.HTTPError, PrefectException) as error:
            self._is_given_up = True
            get_run_logger().warning("the bar of progress stays as it is, because the server fails: %s", reason(error))
