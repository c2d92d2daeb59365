"""dvc.yaml, params.yaml, the stages' functions and the command line say the same."""

import inspect
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from diffusion_core.__main__ import CommandLine
from diffusion_core.params import load_settings
from diffusion_core.settings import Settings
from diffusion_core.stages import paths

STAGES = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_sections_a_stage_takes_are_the_params_it_lists(stage):
    run = import_module(f"diffusion_core.stages.{stage}").run
    taken = set(inspect.signature(run).parameters) - {"environment", "ranks"}
    assert taken == set(STAGES[stage]["params"])


def test_every_stage_is_a_command_and_every_section_belongs_to_one():
    commands = set(CommandLine.model_fields) - {"import_lucidrains", "upload", "remote", "doctor"}
    assert set(STAGES) | {"publish", "promote"} == commands
    assert set(Settings.model_fields) == set(STAGES) | {"promote"}
    for stage, content in STAGES.items():
        assert content["cmd"] == f"${{run}} {stage}"


def test_no_stage_that_computes_reads_where_the_model_came_from():
    readers = [stage for stage, content in STAGES.items() if str(paths.RUN_INFO) in content["deps"]]
    assert readers == []


def test_the_committed_params_are_valid():
    assert load_settings().ingest.source.kind == "digits"
