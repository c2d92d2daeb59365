"""The Prefect server: whether it answers, and runs that seem to run and do not."""

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from typing import Any

import httpx

from diffusion_core.config.environment import Environment
from diffusion_core.doctor.diagnosis import Diagnosis, of_error, ok, problem, warning
from diffusion_core.doctor.prefect_settings import PrefectServer, prefect_server
from diffusion_core.doctor.versions import installed_version
from diffusion_core.errors import UserError

SECONDS_TO_ANSWER = 4.0
MOST_RUNS = 50
# A training prints a line every few minutes.
SILENCE_HOURS = 1.0
START = "start a worker: `make stack`, `make serve`, or that of your pool"


def prefect_api(_: Environment) -> Iterator[Diagnosis]:
    """Check that the Prefect server answers and knows the password, and that its Running runs have a process."""
    try:
        server = prefect_server()
    except UserError as error:
        yield of_error(error)
        return
    if server is None:
        yield ok("no Prefect server is named: `diffusion run` starts a temporary one")
        return
    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    try:
        with httpx.Client(auth=server.login, headers=headers, timeout=SECONDS_TO_ANSWER) as client:
            yield from _asked(client, server)
    except httpx.HTTPStatusError as error:
        code, remedy = error.response.status_code, "see its log, and PREFECT_API_URL"
        if code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            remedy = "correct PREFECT_API_AUTH_STRING (that of `make stack` is in .stack/env)"
        yield problem(f"the Prefect server {server.shown} answers {code}", remedy)
    except UnicodeEncodeError:
        yield problem("PREFECT_API_KEY has characters that no key has", "copy it again from Prefect Cloud")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        # An address in the message of some errors has the password.
        why = str(error) if isinstance(error, httpx.ConnectError) else type(error).__name__
        yield problem(
            f"the Prefect server {server.shown} does not answer as one ({why})",
            "start it, or correct PREFECT_API_URL",
        )


def _asked(client: httpx.Client, server: PrefectServer) -> Iterator[Diagnosis]:
    def post(path: str, **body: object) -> list[dict[str, Any]]:
        answer = client.post(f"{server.api}/{path}", json=body)
        answer.raise_for_status()
        content: list[dict[str, Any]] = answer.json()
        return content

    def runs(**state: object) -> list[dict[str, Any]]:
        # The oldest first: they are the likeliest to have no process.
        return post("flow_runs/filter", flow_runs={"state": state}, sort="EXPECTED_START_TIME_ASC", limit=MOST_RUNS)

    @cache
    def has_worker(pool: str) -> bool:
        return any(each["status"] == "ONLINE" for each in post(f"work_pools/{pool}/workers/filter"))

    def heard(run: dict[str, Any]) -> datetime:
        last = post("logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}}, sort="TIMESTAMP_DESC", limit=1)
        return datetime.fromisoformat(last[0]["timestamp"] if last else run["state"]["timestamp"])

    client.get(f"{server.api}/health").raise_for_status()
    # Asked for each by itself, so that many of one kind do not hide the other.
    begun, late = runs(type={"any_": ["RUNNING", "CANCELLING"]}), runs(name={"any_": ["Late"]})
    yield ok(f"the Prefect server {server.shown} answers")
    there, here = client.get(f"{server.api}/admin/version"), installed_version("prefect")
    if here and there.is_success and (other := str(there.json())).split(".")[:2] != here.split(".")[:2]:
        yield warning(f"the server is Prefect {other[:20]}, and {here} is installed here", "install one of both")
    for run in late:
        yield warning(f"the flow run {run['name']} should have begun and waits", START)
    for run in begun:
        state, pool, name = run["state"]["name"], run.get("work_pool_name"), f"the flow run {run['name']}"
        hours = (datetime.now(UTC) - heard(run)).total_seconds() / 3600
        if pool and not has_worker(pool):
            yield warning(f"{name} is {state}, and no worker of the pool {pool} is online", START)
        elif hours > SILENCE_HOURS:
            yield warning(
                f"{name} is {state}, and has logged nothing for {hours:.0f} hours",
                "if its process is dead, set its state to Crashed on its page; `make deploy` lets the server do that",
            )
        else:
            yield ok(f"{name} is {state}")
