"""dvc.yaml, params.yaml, the stages' functions and the command line say the same."""

import inspect
import re
import subprocess
from importlib import import_module
from pathlib import Path
from typing import get_args

import grimp
import pytest
import yaml
from pydantic import BaseModel

from diffusion_core.__main__ import STAGES as COMMANDS
from diffusion_core.choices import Choice
from diffusion_core.config.params import load_settings
from diffusion_core.config.settings import Settings
from diffusion_core.config.train import REPORTED, TrainSettings
from diffusion_core.metrics.figures import every_metric
from diffusion_core.metrics.figures.metric import COUNTS
from diffusion_core.stages import paths
from diffusion_core.stages.prepare import DECODER

STAGES = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_sections_a_stage_takes_are_the_params_it_lists(stage):
    run = import_module(f"diffusion_core.stages.{stage}").run
    taken = set(inspect.signature(run).parameters) - {"environment", "ranks"}
    assert taken == {key.partition(".")[0] for key in STAGES[stage]["params"]}


def test_dvc_watches_all_of_a_training_but_what_is_reported_on_the_way():
    keys = set(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["train"])
    assert keys >= REPORTED
    assert STAGES["train"]["params"] == [
        f"train.{field.alias or name}" for name, field in TrainSettings.model_fields.items() if name not in REPORTED
    ]
    assert {f"train.{key}" for key in keys - REPORTED} == set(STAGES["train"]["params"])


def test_every_stage_is_a_command_and_every_section_belongs_to_one():
    assert [*STAGES, "publish", "promote", "report", "check"] == list(COMMANDS)
    assert set(Settings.model_fields) == set(STAGES) | {"promote"}
    for stage, content in STAGES.items():
        assert content["cmd"] == f"${{run}} {stage}"


def test_no_stage_that_computes_reads_where_the_model_came_from():
    readers = [stage for stage, content in STAGES.items() if str(paths.RUN_INFO) in content["deps"]]
    assert readers == []


def test_the_committed_params_are_valid():
    assert load_settings().ingest.source.kind == "digits"


# Modules that a stage imports and DVC does not watch, with the reason. What they import is reached through them alone.
EVERYWHERE = {
    "arrays": "writes arrays to files",
    "address": "reads addresses, of which a wrong one fails",
    "choices": "checks names and options",
    "config": "checks values, which DVC watches themselves",
    "counts": "writes counts in sentences",
    "documents": "reads JSON and YAML",
    "errors": "holds classes of errors",
    "lineage.changes": "records what a checkout has beside its commit",
    "lineage.checkpoints": "names folders, and says which are whole",
    "lineage.dataset_version": "names and counts the images, for people",
    "lineage.git": "asks git",
    "lineage.identity": "names what a training is made of",
    "lineage.model_files": "names a model's files",
    "lineage.outbox": "holds what MLflow is told",
    "lineage.provenance": "records what a result was made of",
    "lineage.recorded": "names what MLflow is told",
    "lineage.record": "writes and reads JSON",
    "problems": "says what is wrong",
    "progress": "shows how far it is",
    "parallel": "runs calls side by side",
    "registry": "tells MLflow what was done",
    "files": "puts whole outputs in their place",
    "locks": "lets one process work at a time",
    "lineage.tensors": "writes tensors to files",
    "stages.cost": "records how long stages took",
    "runtime.energy": "reads counters of energy",
    "stages.origin": "records what a training is made of and where it runs",
    "stages.paths": "holds names of files",
}
WHERE_IT_RUNS = {
    "runtime.device": "says where it runs",
}
SAMPLING = ("ddim", "dpm_solver", "guidance", "heun", "loop", "noise", "repaint", "spacing")
LEFT_OUT = {
    "ingest": {},
    "prepare": {
        "storage": "is reached by the bucket's source alone",
        "metrics.features": "is the extractor of the last evaluation, which measures drift alone",
        "metrics.reference": "reads it",
    },
    "reference": WHERE_IT_RUNS,
    "train": {
        "stages.keeping": "keeps checkpoints, and copies them",
        "stages.named": "finds the model that train.from names, whose digest is a part of what is trained",
        "stages.memory": "says how much memory is free",
        "stages.preview": "makes previews",
        "stages.reporting": "says how it went",
        **dict.fromkeys((f"samplers.{name}" for name in SAMPLING), "samples previews"),
    },
    "sample": {},
    "evaluate": {
        **WHERE_IT_RUNS,
        "data.sources.web": "fetches an extractor's file, whose hash is checked",
        "data.downloads": "holds it",
    },
}
GRAPH = grimp.build_graph("diffusion_core", cache_dir=None)


def choosable(stage):
    """Return the modules of the classes that the sections of a stage can name by `kind`."""
    sections = {key.partition(".")[0] for key in STAGES[stage]["params"]}
    types, found = [Settings.model_fields[section].annotation for section in sections], set()
    while types:
        each = types.pop()
        types += get_args(each)
        if isinstance(each, type) and issubclass(each, BaseModel):
            types += [field.annotation for field in each.model_fields.values()]
        elif isinstance(each, type) and issubclass(each, Choice):
            found.add(each.__module__)
    return found


def imported(stage, left_out):
    """Return the modules that a stage imports, itself included, but for those that are left out."""

    def is_left_out(module):
        return any(f"{module}.".startswith(f"diffusion_core.{each}.") for each in left_out)

    found, new = set(), {f"diffusion_core.stages.{stage}", *choosable(stage)}
    while new:
        found |= new
        new = {each for module in new for each in GRAPH.find_modules_directly_imported_by(module)} - found
        new = {module for module in new if not is_left_out(module)}
    return found


def watched(stage):
    """Return the modules of this package that a stage has among its `deps`."""
    places = [Path(each) for each in STAGES[stage]["deps"] if each.startswith("diffusion_core/")]
    files = [file for place in places for file in (place.rglob("*.py") if place.is_dir() else [place])]
    return {".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files}


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_watches_the_code_that_a_stage_imports(stage):
    missing = imported(stage, {**EVERYWHERE, **LEFT_OUT[stage]}) - watched(stage)
    # Those that are watched although only others of their package are imported need no reason.
    assert missing - {"diffusion_core"} == set(), f"add to the deps of {stage} in dvc.yaml"


def test_code_that_is_not_watched_is_found(monkeypatch):
    monkeypatch.setitem(STAGES["evaluate"], "deps", ["diffusion_core/stages/evaluate.py"])
    missing = imported("evaluate", {**EVERYWHERE, **LEFT_OUT["evaluate"]}) - watched("evaluate")
    assert {"diffusion_core.metrics.figures.frechet", "diffusion_core.plots"} <= missing


@pytest.mark.parametrize("stage", STAGES)
def test_every_file_that_dvc_watches_is_imported_and_listed_once(stage):
    code = [each for each in STAGES[stage]["deps"] if each.startswith("diffusion_core/")]
    assert len(set(code)) == len(code)
    packages = {module for module in watched(stage) if GRAPH.find_children(module)}
    assert watched(stage) - packages <= imported(stage, ())


def test_what_decides_the_pixels_of_a_file_is_in_the_digest_of_the_decoder():
    decode = "diffusion_core.data.decode"
    imported = {decode, *GRAPH.find_upstream_modules(decode)}
    package = "diffusion_core.data."
    # What lies outside of the package are errors and the base class of choices.
    assert imported - {each for each in imported if each.startswith(package)} <= {
        "diffusion_core",
        "diffusion_core.choices",
        "diffusion_core.data",
        "diffusion_core.errors",
    }
    assert {each.removeprefix(package) for each in imported if each.startswith(package)} == set(DECODER)


def test_git_ignores_what_stages_write():
    """Else the first run changes a .gitignore, and every model comes from a commit with changes."""
    outputs = [
        path for stage in STAGES.values() for kind in ("outs", "metrics", "plots") for path in stage.get(kind, [])
    ]
    names = [next(iter(each)) if isinstance(each, dict) else each for each in outputs]
    names += map(str, (paths.REPORT, paths.COMPARISON, paths.TRACE, paths.TRACE_JSON))
    done = subprocess.run(["git", "check-ignore", *names], capture_output=True, text=True, check=False)
    assert done.stdout.split() == names


def test_no_metric_has_the_name_of_an_output_or_of_a_dependency():
    """Else `dvc exp show` has hashes in the metric's column, as it once had for `samples`."""
    names = {name for metric in every_metric() for name in metric.figures} | set(COUNTS)
    assert names & {path for stage in STAGES.values() for path in stage["deps"]} == set()
    assert {"frechet", "sample_count"} <= names


def test_dvc_shows_the_pictures_that_the_samples_have():
    content = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))
    code = Path("diffusion_core/stages/sample.py").read_text(encoding="utf-8")
    assert content["plots"] == [f"samples/{name}" for name in re.findall(r'folder / "(\w+\.png)"', code)]
