"""The runs of the flow `pipeline` that the user's Prefect server knows: `python -m flows.nights` prints them as JSON.

It prints null if no server is configured.
"""

import json
import sys
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterStartTime
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectException

from flows.user_server import NoServer, reason, user_server

# The server returns no more at a time.
MOST = 200
# Tags that `flows.verdict` gives; other runs are called by their state.
OUTCOMES = ("promoted", "refused", "unchanged", "published")


def nights(page: str) -> list[dict[str, Any]]:
    """Return the newest runs that have started, with what became of each; `page` is the address of Prefect's pages."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=["pipeline"])),
            flow_run_filter=FlowRunFilter(start_time=FlowRunFilterStartTime(is_null_=False)),
            sort=FlowRunSort.START_TIME_DESC,
            limit=MOST,
        )
    return [_night(run, page) for run in runs]


def _night(run: FlowRun, page: str) -> dict[str, Any]:
    assert run.start_time is not None
    state = run.state_name or "unknown"
    return {
        "id": str(run.id),
        "time": run.start_time.isoformat(),
        "outcome": next((outcome for outcome in OUTCOMES if outcome in run.tags), state.lower()),
        "sentence": (run.state.message if run.state else None) or state,
        "page": f"{page}/runs/flow-run/{run.id}",
    }


def main() -> None:
    """Print the runs; on an error print one sentence, exit code 2."""
    try:
        page = user_server()
        print(json.dumps(None if page is None else nights(page)))
    except NoServer as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (httpx.HTTPError, PrefectException) as error:
        print(f"error: the Prefect server stopped answering ({reason(error)}): try again", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
