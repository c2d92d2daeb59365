"""The flow runs the graph of dvc.yaml and then the registry, and says what became of it."""

import base64
import io
import os
import re
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import TaskRunSort
from prefect.exceptions import ParameterTypeError

from flows import nights, tasks
from flows.automations import FAILED, PROMOTED, REFUSED
from flows.failure import StageFailed
from flows.pipeline import pipeline
from flows.verdict import run_name
from tests.flows.repository import commit, git, graph, ran
from tests.flows.runs import SLOW_STAGE, artifacts

pytestmark = pytest.mark.usefixtures("prefect_server")

# What a run shares with other machines, beside its stages.
SHARING = ("pull", "push", "keep-lock")


def task_runs(flow_run_id):
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
        return client.read_task_runs(flow_run_filter=wanted, sort=TaskRunSort.EXPECTED_START_TIME_ASC)


def dvc_status(project):
    command = [sys.executable, "-m", "dvc", "status"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout


def test_the_chain_is_the_graph_of_dvc_yaml_and_then_the_registry(finished_project):
    folder, flow_run_id, stages = finished_project
    order = [stage for stage, _ in stages]
    assert order[-3:] == ["publish", "promote", "report"]
    # Before the longest stage.
    assert order[order.index("train") - 1] == "check"
    computed = [stage for stage in order[:-3] if stage != "check"]
    assert sorted(computed) == sorted(graph())
    made = set()
    for stage in computed:
        inputs, outputs = graph()[stage]
        assert made.issuperset(inputs), stage
        made.update(outputs)
    # Nothing is left for DVC, so no stage ran before what it reads was made.
    assert "up to date" in dvc_status(folder)
    names = [run.name for run in task_runs(flow_run_id)]
    assert [name for name in names if name not in SHARING] == order
    # What is made is pushed before anything that could fail without it.
    assert names[0] == "pull"
    assert names[names.index("train") + 1] == "push"
    assert names[names.index("evaluate") + 1 :] == ["push", "keep-lock", "publish", "promote", "report"]


def test_every_stage_knows_the_flow_run(finished_project):
    _, flow_run_id, stages = finished_project
    assert {run for _, run in stages} == {str(flow_run_id)}


def test_one_page_shows_data_training_samples_metrics_decision_and_links(finished_project):
    shown = artifacts(finished_project[1])
    assert set(shown) == {"run"}
    page = shown["run"]["data"]
    titles = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert titles == ["Decision", "Data", "Training", "Samples", "Metrics", "Network", "Links"]
    assert "|frechet|2.5|2.4|2.6|1||" in page
    assert "|trained_images|25600|" in page
    network = page.partition("## Network")[2]
    assert re.findall(r"^\|(\w+)\|[\d,]+\.\d\|$", network, re.MULTILINE) == [stage for stage, _ in finished_project[2]]
    assert "git_commit" not in page
    assert "**refused**: version 7 is refused: frechet is 2.5, 1.5 above 1" in page
    assert "[diffusion, version 7 in MLflow](http://127.0.0.1:5000/#/experiments/1/runs/abc)" in page
    text = page.partition("data:image/png;base64,")[2].partition(")")[0]
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        assert (picture.format, picture.size) == ("PNG", (1000, 200))


def test_the_page_of_a_run_whose_samples_fail_has_its_training(project):
    (project / "on_sample.py").write_text("import sys; sys.exit(2)")
    state = pipeline(return_state=True)
    assert state.is_failed()
    assert "## Training" in artifacts(state.state_details.flow_run_id)["run"]["data"]


def flow_run(state):
    with get_client(sync_client=True) as client:
        return client.read_flow_run(state.state_details.flow_run_id)


def test_a_run_is_called_and_tagged_by_what_it_runs_and_what_became_of_it(project_after_a_run):
    source = "kind: url\n    url: https://h/cats.zip?sig=canary"
    (project_after_a_run / "params.yaml").write_text(f"ingest:\n  source:\n    {source}\ntrain: 0\n")
    commit(project_after_a_run)
    before = git(project_after_a_run, "rev-parse", "HEAD")[:7]
    run = flow_run(pipeline(refresh_data=False, return_state=True))
    assert run.name == f"cats.zip @ {before}: refused version 7"
    assert run.tags == ["model:diffusion", "refused", "version:7"]
    assert run.state.message == "refused: version 7 is refused: frechet is 2.5, 1.5 above 1"
    assert run.state.name == "Completed"
    run = flow_run(pipeline(refresh_data=False, promote=False, overrides=["train=s3://b/x?y"], return_state=True))
    assert run.name == f"cats.zip @ {before}, train=s3://b/x: published version 7"
    assert run.tags == ["model:diffusion", "published", "version:7"]
    assert run.state.message == "published: version 7"


def test_the_calendar_has_all_runs_of_its_model_and_no_others(finished_project, monkeypatch):
    monkeypatch.setattr(nights, "PAGE", 1)
    found = nights.nights("http://p", "diffusion")
    run = str(finished_project[1])
    (night,) = (each for each in found if each["id"] == run)
    assert len({each["id"] for each in found}) == len(found)
    assert (night["outcome"], night["version"]) == ("refused", 7)
    assert night["page"] == f"http://p/runs/flow-run/{run}"
    assert nights.nights("http://p", "another") == []


@pytest.mark.parametrize("params", [None, "a: [", "ingest: 3", "ingest: {source: {url: ''}}"])
def test_a_run_without_a_source_that_can_be_read_has_a_name_too(project, params):
    if params is None:
        (project / "params.yaml").unlink()
    else:
        (project / "params.yaml").write_text(params)
    assert re.fullmatch(r"pipeline( @ [0-9a-f]{7}\+?)?", run_name())


def test_a_second_run_looks_for_new_data_and_does_nothing_else(project_after_a_run):
    pipeline()
    assert [stage for stage, _ in ran(project_after_a_run)] == ["ingest", "check", "publish", "promote", "report"]


def test_a_run_without_refresh_takes_the_data_that_are_there(project_after_a_run):
    (project_after_a_run / "source.txt").write_text("other images")
    pipeline(refresh_data=False)
    assert [stage for stage, _ in ran(project_after_a_run)] == ["check", "publish", "promote", "report"]


def test_new_data_run_everything_again(project_after_a_run):
    (project_after_a_run / "source.txt").write_text("other images")
    pipeline()
    assert len(ran(project_after_a_run)) == len(graph()) + 4


def test_a_mistake_ends_the_run_with_its_sentence_and_later_stages_do_not_run(project):
    (project / "on_prepare.py").write_text(
        "import sys; print('error: params.yaml: unknown key x: remove it', file=sys.stderr); sys.exit(2)"
    )
    with pytest.raises(StageFailed, match=r"^prepare: params\.yaml: unknown key x: remove it$") as caught:
        pipeline()
    assert caught.value.is_mistake
    assert [stage for stage, _ in ran(project)] == ["ingest", "prepare"]


def test_a_server_that_is_down_is_tried_again_and_a_mistake_is_not(project, monkeypatch):
    monkeypatch.setattr(tasks.prepare, "retry_delay_seconds", [0.0, 0.0])
    (project / "on_prepare.py").write_text(
        "import os, sys; tried = os.path.exists('tried'); open('tried', 'w').close()\n"
        "sys.exit(tried or (print('error: the store is down: start it') or 75))"
    )
    with pytest.raises(StageFailed, match="ended with exit code 255"):
        # The second attempt ends with code 1 and without a sentence.
        pipeline()
    assert [stage for stage, _ in ran(project)] == ["ingest", "prepare", "prepare"]
    (project / "on_prepare.py").write_text("import sys; print('error: the store is down: start it'); sys.exit(75)")
    with pytest.raises(StageFailed, match=r"^prepare: the store is down: start it$") as caught:
        pipeline()
    assert caught.value.is_mistake
    assert [stage for stage, _ in ran(project)] == ["ingest", "prepare", "prepare", "prepare"]


def test_a_stage_that_hangs_is_ended_with_all_that_it_has_started(project_after_a_run, monkeypatch):
    monkeypatch.setattr(tasks.publish, "timeout_seconds", 3.0)
    (project_after_a_run / "on_publish.py").write_text(SLOW_STAGE)
    with pytest.raises(TimeoutError, match="timed out after 3.0 second"):
        pipeline(refresh_data=False)
    stage, _, grandchild = (project_after_a_run / "pids").read_text().split()
    assert not psutil.pid_exists(int(stage))
    assert not psutil.pid_exists(int(grandchild)) or psutil.Process(int(grandchild)).status() == psutil.STATUS_ZOMBIE


def test_what_waits_for_the_network_may_hang_and_what_computes_is_bounded_by_its_budget():
    limited = {name for name in vars(tasks) if getattr(getattr(tasks, name), "timeout_seconds", None)}
    assert limited == {"pull", "ingest", "push", "check", "publish", "promote", "report", "verify"}


def test_overrides_change_params_yaml_and_what_depends_on_it(project, caplog, monkeypatch):
    # As in a container: git knows no name, and DVC's experiments would ask for one.
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("HOME", str(project.parent / "home"))
    (project / "params.yaml").write_text("train: {seed: 0}\n")
    graph = yaml.safe_load((project / "dvc.yaml").read_text())
    graph["stages"]["train"]["params"] = ["train"]
    (project / "dvc.yaml").write_text(yaml.safe_dump(graph))
    commit(project)
    pipeline()
    ran(project)
    pipeline(overrides=["train.seed=7"], refresh_data=False)
    assert [stage for stage, _ in ran(project)][:2] == ["check", "train"]
    assert "the outputs here are those of the overrides (train.seed=7): `git checkout dvc.lock && dvc checkout`" in (
        caplog.text
    )
    # They are of that run alone: the next one has nothing to do but to bring back what was.
    assert (project / "params.yaml").read_text() == "train: {seed: 0}\n"
    pipeline(refresh_data=False)
    assert [stage for stage, _ in ran(project)] == ["check", "publish", "promote", "report"]


def test_a_run_with_overrides_that_fails_leaves_the_parameters_as_they_were(project):
    (project / "params.yaml").write_text("train: {seed: 0}\n")
    (project / "on_ingest.py").write_text(
        "import pathlib, sys; pathlib.Path('seen').write_text(pathlib.Path('params.yaml').read_text()); sys.exit(1)"
    )
    commit(project)
    with pytest.raises(StageFailed):
        pipeline(overrides=["train.seed=7"])
    assert "seed: 7" in (project / "seen").read_text()
    assert (project / "params.yaml").read_text() == "train: {seed: 0}\n"


@pytest.mark.parametrize("override", ["--help", "train.seed", "-x=1", "=1", ""])
def test_an_override_that_is_none_is_refused_before_anything_runs(project, override):
    with pytest.raises(ParameterTypeError, match="overrides"):
        pipeline(overrides=[override])
    assert ran(project) == []


@pytest.mark.parametrize("key", ["train.sed", "trian.seed", "train.seed.more", "new"])
def test_an_override_of_a_key_that_is_none_is_told_before_anything_runs(project, key):
    (project / "params.yaml").write_text("train: {seed: 0}\n")
    with pytest.raises(StageFailed, match=f"^overrides: params.yaml has no key {key}: correct its spelling$"):
        pipeline(overrides=[f"{key}=1"])
    assert ran(project) == []


def test_a_run_that_is_not_to_promote_publishes_and_reports_and_no_more(project_after_a_run):
    pipeline(refresh_data=False, promote=False)
    assert [stage for stage, _ in ran(project_after_a_run)] == ["publish", "report"]


def events(name, flow_run_id, seconds=30.0):
    """The events of that name about a run, as soon as there is one; they travel beside the run."""
    deadline = time.monotonic() + seconds
    while True:
        wanted = {"filter": {"event": {"name": [name]}, "resource": {"id": [f"prefect.flow-run.{flow_run_id}"]}}}
        with get_client(sync_client=True) as client:
            found = client.request("POST", "/events/filter", json=wanted).json()["events"]
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


def test_a_run_that_fails_says_why_in_an_event(project):
    (project / "on_ingest.py").write_text("import sys; print('error: no images: add some'); sys.exit(2)")
    state = pipeline(return_state=True)
    (event,) = events(FAILED, state.state_details.flow_run_id)
    assert "ingest: no images: add some" in event["payload"]["sentence"]


@pytest.mark.parametrize(("outcome", "event"), [("promoted", PROMOTED), ("refused", REFUSED), ("unchanged", None)])
def test_a_promotion_and_a_refusal_are_events_and_no_news_is_none(project_after_a_run, outcome, event):
    module = project_after_a_run / "diffusion_core/__main__.py"
    module.write_text(module.read_text().replace('"refused"', f'"{outcome}"'))
    state = pipeline(refresh_data=False, return_state=True)
    # Events of a run arrive in their order, and this one comes after all of ours.
    assert events("prefect.flow-run.Completed", state.state_details.flow_run_id)
    for name in (PROMOTED, REFUSED):
        found = events(name, state.state_details.flow_run_id, seconds=0.0)
        assert [each["payload"]["outcome"] for each in found] == ([outcome] if name == event else [])


def test_a_crash_is_no_mistake(project):
    (project / "on_ingest.py").write_text("raise RuntimeError('a bug')")
    with pytest.raises(StageFailed, match="ingest ended with exit code 255") as caught:
        pipeline()
    assert not caught.value.is_mistake
