"""Reads from the store where a registered version comes from. It loads no model, and so needs no PyTorch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from diffusion_core.address import without_credentials, without_userinfo
from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.lineage.identity import as_in_yaml, flattened
from diffusion_core.lineage.provenance import FLOW_RUN
from diffusion_core.lineage.recorded import (
    CHANGES,
    DATA,
    FOLDER,
    LOCK,
    PARAMS,
    PARENT,
    PARENT_DIGEST,
    UNRECORDED,
    Lock,
    all_params,
    shown,
)
from diffusion_core.lineage.trace import Change, Trace, counted, differences
from diffusion_core.registry.connection import run_page
from diffusion_core.registry.run_files import run_file
from diffusion_core.registry.sending import has_run
from diffusion_core.registry.versions import (
    CHAMPION_BEFORE,
    COMMIT,
    DECISION,
    find_champion,
    find_named,
    recorded_evaluation,
)

PAGE_OF_DATA = "data.html"


@dataclass(frozen=True)
class _Known:
    """What the store has of a version: its run, or None if that was deleted, and what is recorded with it."""

    version: ModelVersion
    run: Run | None
    params: dict[str, str]
    sections: dict[str, Any]
    numbers: dict[str, Any]
    missing: list[str]

    @property
    def tags(self) -> dict[str, str]:
        return ({} if self.run is None else self.run.data.tags) | self.version.tags

    @property
    def data(self) -> dict[str, str]:
        """The images by their hashes and counts."""
        names = {"dataset_md5": "md5", "dataset_digest": "sha256"}
        return {title: self.tags[tag] for tag, title in names.items() if tag in self.tags} | counted(self.numbers)


def traced(client: MlflowClient, environment: Environment, version: ModelVersion) -> Trace:
    """Return where a version comes from.

    Args:
        client: client of the current store.
        environment: the environment, with the address of the store's pages.
        version: the version.
    """
    now = _known(client, version)
    decision = _json(version.tags.get(DECISION, "{}"))
    before, gone = _before(client, version, decision)
    other = None if before is None else _known(client, before)
    code, diff = _code(client, now)
    return Trace(
        model=version.name,
        version=int(version.version),
        published=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        aliases=sorted(version.aliases),
        decision=str(decision.get("sentence", "")),
        code=code,
        data=_source(now.sections) | now.data | _data_page(client, environment, now),
        params=now.params,
        metrics=_metrics(version),
        machine=_machine(now.tags),
        runs=_runs(environment, now),
        parents=_parents(now.tags, before, gone),
        before=None if before is None else int(before.version),
        data_changes=[] if other is None else differences(other.data, now.data),
        param_changes=[] if other is None else _param_changes(other, now),
        missing=now.missing,
        diff=diff,
    )


def _known(client: MlflowClient, version: ModelVersion) -> _Known:
    run_id = str(version.run_id)
    if not has_run(client, run_id):
        return _Known(version, None, {}, {}, {}, [f"its run {run_id} was deleted in MLflow, with what it had recorded"])
    run, missing = client.get_run(run_id), []
    try:
        texts = {file: run_file(client, run, file) for file in (PARAMS, LOCK, DATA)}
        params, lock, data = (None if text is None else text.decode() for text in texts.values())
        sections = all_params(params, None if lock is None else Lock.parse(lock))
        numbers = {} if data is None else json.loads(data)
    except ValueError as error:
        texts, sections, numbers = {}, {}, {}
        missing.append(f"what {FOLDER}/ of the run holds is damaged ({' '.join(str(error).split())})")
    absent = [file for file, text in texts.items() if text is None]
    if absent:
        missing.append(
            f"{' and '.join(absent)} were not recorded: it was published by earlier code, or made without DVC"
        )
    if "processor" not in run.data.tags:
        missing.append(
            "the machine was not recorded: it was trained by earlier code, or another run stands in for its own"
        )
    params_of = flattened(sections) or dict(run.data.params)
    values = {
        name: as_in_yaml(without_userinfo(value) if "://" in value else value) for name, value in params_of.items()
    }
    return _Known(version, run, values, sections, numbers, missing)


def _before(
    client: MlflowClient, version: ModelVersion, decision: Mapping[str, Any]
) -> tuple[ModelVersion | None, str]:
    """Return the champion before a version and, if it was deleted, its number.

    For a version that the gate has not decided on, it is the present champion.
    """
    number = decision.get("grounds", {}).get("champion") if decision else None
    number = version.tags.get(CHAMPION_BEFORE, number)
    if number is None:
        champion = None if decision else find_champion(client, version.name)
        return (None if champion is None or champion.version == version.version else champion), ""
    if str(number) == str(version.version):
        return None, ""
    try:
        return find_named(client, version.name, str(number)), ""
    except UserError:
        return None, str(number)


def _metrics(version: ModelVersion) -> dict[str, dict[str, float]]:
    """Return value, low, high, floor and ceiling of each metric."""
    evaluation = recorded_evaluation(version)
    if evaluation is None:
        return {}
    return {
        name: {suffix.lstrip("_") or "value": value for suffix, value in each.named("").items()}
        for name, each in evaluation.estimates.items()
    }


def _param_changes(before: _Known, now: _Known) -> list[Change]:
    if before.sections and now.sections:
        return differences(before.params, now.params)
    # One of them has those of its training alone.
    both = [{} if each.run is None else each.run.data.params for each in (before, now)]
    names = both[0].keys() & both[1].keys()
    return differences(*({name: as_in_yaml(each[name]) for name in names} for each in both))


def _code(client: MlflowClient, known: _Known) -> tuple[dict[str, str], str]:
    """Return commit and changes by name, and the text of the changes."""
    code = {"commit": known.tags.get(COMMIT, "unknown: it was trained outside of a git checkout")}
    dirty = known.tags.get("git_dirty")
    if dirty == "true":
        why = known.tags.get(UNRECORDED, "it was trained by earlier code")
        content = None if known.run is None else run_file(client, known.run, CHANGES)
        if content is not None:
            code["changes"] = f"in {CHANGES} of the run, and on the page of this trace"
            return code, without_credentials(content.decode(errors="replace"))
        code["changes"] = f"not recorded, because {why}"
    elif dirty == "false":
        code["changes"] = "none"
    return code, ""


def _source(sections: Mapping[str, Any]) -> dict[str, str]:
    source = sections.get("ingest", {}).get("source")
    if not isinstance(source, dict):
        return {}
    return {
        "source": ", ".join(
            f"{name} {as_in_yaml(without_userinfo(str(value)))}" for name, value in source.items() if value is not None
        )
    }


def _data_page(client: MlflowClient, environment: Environment, known: _Known) -> dict[str, str]:
    found = {}
    changes = {name: count for name, count in known.numbers.get("changes", {}).items() if count}
    if changes:
        found["since the images before"] = ", ".join(f"{count:,} {name}" for name, count in changes.items())
    if known.run is not None and PAGE_OF_DATA in [each.path for each in client.list_artifacts(known.run.info.run_id)]:
        page, mark, query = run_page(environment, known.run.info.experiment_id, known.run.info.run_id).partition("?")
        found["page"] = f"{page}/artifacts/{PAGE_OF_DATA}{mark}{query}"
    return found


def _machine(tags: Mapping[str, str]) -> dict[str, str]:
    return shown(tags) | ({"self-check": tags["self_check"]} if "self_check" in tags else {})


def _runs(environment: Environment, known: _Known) -> dict[str, str]:
    found = {}
    if known.run is not None:
        found["MLflow run"] = str(known.version.run_id)
        found["MLflow page"] = run_page(environment, known.run.info.experiment_id, known.run.info.run_id)
        if FLOW_RUN in known.run.data.tags:
            found["trained in Prefect's flow run"] = known.run.data.tags[FLOW_RUN]
    if FLOW_RUN in known.version.tags:
        found["published in Prefect's flow run"] = known.version.tags[FLOW_RUN]
    return found


def _parents(tags: Mapping[str, str], before: ModelVersion | None, gone: str) -> dict[str, str]:
    found = {}
    if before is not None:
        found["champion before"] = f"version {before.version}"
    elif gone:
        found["champion before"] = f"version {gone}, which was deleted in MLflow"
    if PARENT in tags:
        found["began from"] = tags[PARENT]
        found["its sha256"] = tags.get(PARENT_DIGEST, "not recorded")
    return found


def _json(text: str) -> dict[str, Any]:
    """Return the content of a tag that holds a JSON object; empty for another."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
