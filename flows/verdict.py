"""What a run is called and tagged, on what it runs, and what became of it."""

from pathlib import Path
from typing import Any

from prefect import State
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.states import Completed

from diffusion_core.documents import read_yaml
from diffusion_core.lineage.provenance import git_state
from diffusion_core.stages.paths import PROMOTION, PUBLICATION
from flows.checkout import PARAMS
from flows.page import read

# Keys of a source that say which one it is, in the order in which the first is taken.
PLACES = ("name", "url", "path", "file")


def run_name() -> str:
    """Return what a run is called while it runs: its images, the commit, and its overrides."""
    context = FlowRunContext.get()
    overrides = [] if context is None else (context.parameters or {}).get("overrides") or []
    state = git_state()
    commit = "" if state.commit is None else f" @ {state.commit[:7]}{'+' if state.dirty else ''}"
    return ", ".join([f"{_images()}{commit}", *overrides])


def _images() -> str:
    """Return the short name of the source of the images."""
    try:
        source: dict[str, Any] = read_yaml(PARAMS)["ingest"]["source"]
        place = next((str(source[key]) for key in PLACES if source.get(key)), source["kind"])
    except (OSError, ValueError, LookupError, TypeError):
        # The stages say what is wrong with the file.
        return "pipeline"
    return Path(place.rstrip("/")).name


def published() -> State[None]:
    """Return the final state of a run that only publishes, and name the run by it."""
    version = read(PUBLICATION)["version"]
    return _conclude("published", f"version {version}")


def decided() -> State[None]:
    """Return the final state of a run for which the gate has decided, and name the run by it."""
    decision, version = read(PROMOTION), read(PUBLICATION)["version"]
    return _conclude(decision["outcome"], f"version {version}", decision["sentence"])


def _conclude(outcome: str, what: str, sentence: str = "") -> State[None]:
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    run = context.flow_run
    get_client(sync_client=True).update_flow_run(
        run.id, name=f"{run.name}: {outcome} {what}", tags=sorted({*run.tags, outcome})
    )
    return Completed(message=f"{outcome}: {sentence or what}")
