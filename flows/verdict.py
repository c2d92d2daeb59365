"""What a run is called and tagged, on what it runs, and what became of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prefect import State
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.states import Completed

from diffusion_core.address import without_credentials
from diffusion_core.config.environment import load_environment
from diffusion_core.documents import read_yaml
from diffusion_core.lineage.provenance import git_state
from diffusion_core.stages.paths import PROMOTION, PUBLICATION
from flows.checkout import PARAMS
from flows.page import read

# Keys of a source that say which one it is, in the order in which the first is taken.
PLACES = ("name", "url", "path", "file")
# Tags of a run, before the registered model and the number of its version.
MODEL, VERSION = "model:", "version:"


def run_name() -> str:
    """Return what a run is called while it runs: its images, the commit, and its overrides."""
    context = FlowRunContext.get()
    overrides = [] if context is None else (context.parameters or {}).get("overrides") or []
    state = git_state()
    commit = "" if state.commit is None else f" @ {state.commit[:7]}{'+' if state.dirty else ''}"
    # Prefect's database keeps it, and an address may have a signature in its query.
    return ", ".join([f"{_images()}{commit}", *map(without_credentials, overrides)])


def _images() -> str:
    """Return the short name of the source of the images."""
    try:
        source: dict[str, Any] = read_yaml(PARAMS)["ingest"]["source"]
        place = next((str(source[key]) for key in PLACES if source.get(key)), source["kind"])
    except (OSError, ValueError, LookupError, TypeError):
        # The stages say what is wrong with the file.
        return "pipeline"
    return Path((urlsplit(place).path if "://" in place else place).rstrip("/")).name or source["kind"]


def tag_by_model() -> None:
    """Tag the run by the registered model, by which `diffusion history --page` finds it."""
    _tag([f"{MODEL}{load_environment().registered_model}"])


def published() -> State[None]:
    """Return the final state of a run that only publishes, and name the run by it."""
    return _conclude("published", read(PUBLICATION)["version"])


def decided() -> State[None]:
    """Return the final state of a run for which the gate has decided, and name the run by it."""
    decision = read(PROMOTION)
    return _conclude(decision["outcome"], read(PUBLICATION)["version"], decision["sentence"])


def _conclude(outcome: str, version: int, sentence: str = "") -> State[None]:
    _tag([outcome, f"{VERSION}{version}"], f": {outcome} version {version}")
    return Completed(message=f"{outcome}: {sentence or f'version {version}'}")


def _tag(tags: Sequence[str], ending: str = "") -> None:
    """Add tags to the run, and an ending to its name."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(context.flow_run.id)
        client.update_flow_run(run.id, name=f"{run.name}{ending}", tags=sorted({*run.tags, *tags}))
