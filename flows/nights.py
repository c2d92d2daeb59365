"""A model's runs of the flow `pipeline` on the user's Prefect server: `python -m flows.nights MODEL` prints JSON.

It prints null if no server is configured.
"""

import json
import sys
from argparse import ArgumentParser
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterStartTime,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectException

from flows.user_server import NoServer, reason, user_server
from flows.verdict import MODEL, VERSION

# The server returns no more at a time.
PAGE = 200
# Tags that `flows.verdict` gives; other runs are called by their state.
OUTCOMES = ("promoted", "refused", "unchanged", "published")


def nights(page: str, model: str) -> list[dict[str, Any]]:
    """Return all runs that have started, the oldest first, with what became of each.

    Args:
        page: address of Prefect's pages.
        model: the registered model; a server may have runs of several projects.
    """
    found: list[FlowRun] = []
    with get_client(sync_client=True) as client:
        # The oldest first, because a run that starts meanwhile would move the others.
        while len(found) % PAGE == 0:
            runs = client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=["pipeline"])),
                flow_run_filter=FlowRunFilter(
                    start_time=FlowRunFilterStartTime(is_null_=False),
                    tags=FlowRunFilterTags(all_=[f"{MODEL}{model}"]),
                ),
                sort=FlowRunSort.START_TIME_ASC,
                limit=PAGE,
                offset=len(found),
            )
            if not runs:
                break
            found += runs
    return [_night(run, page) for run in found]


def _night(run: FlowRun, page: str) -> dict[str, Any]:
    assert run.start_time is not None
    state = run.state_name or "unknown"
    versions = [tag.removeprefix(VERSION) for tag in run.tags if tag.startswith(VERSION)]
    return {
        "id": str(run.id),
        "time": run.start_time.isoformat(),
        "outcome": next((outcome for outcome in OUTCOMES if outcome in run.tags), state.lower()),
        "sentence": (run.state.message if run.state else None) or state,
        "version": int(versions[0]) if versions else None,
        "page": f"{page}/runs/flow-run/{run.id}",
    }


def main() -> None:
    """Print the runs; on an error print one sentence, exit code 2."""
    parser = ArgumentParser("python -m flows.nights", description=__doc__)
    parser.add_argument("model", help="the registered model")
    model = parser.parse_args().model
    try:
        page = user_server()
        print(json.dumps(None if page is None else nights(page, model)))
    except NoServer as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (httpx.HTTPError, PrefectException) as error:
        print(f"error: the Prefect server stopped answering ({reason(error)}): try again", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
