"""A version says where it comes from, and can be made again from that."""

import json
import re
import shutil
import signal
import subprocess
import sys
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from diffusion_core.__main__ import main
from diffusion_core.errors import UserError
from diffusion_core.lineage.identity import as_in_yaml, flattened
from diffusion_core.lineage.model_files import model_digest
from diffusion_core.lineage.recorded import CHANGES, DATA, LOCK, PARAMS
from diffusion_core.registry.ingredients import log_lineage
from diffusion_core.registry.origin import origin
from diffusion_core.registry.versions import find_named
from diffusion_core.stages import reproduce
from diffusion_core.supervision.child import run_child
from diffusion_core.training.validation import affordable_images
from tests.lineage.job import NAME, begun, file_of, run_job, store, twin
from tests.registry.servers import dying_server


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a job with two versions, the champion and the one before, and the commit."""
    folder = tmp_path_factory.mktemp("job")
    return folder, run_job(folder)


@pytest.fixture
def job(made, monkeypatch):
    """The job's folder as the current one; nothing but the store is set."""
    monkeypatch.chdir(made[0])
    monkeypatch.setenv("DIFFUSION_TRACKING_URI", f"sqlite:///{made[0]}/mlflow.db")
    monkeypatch.delenv("DIFFUSION_THREADS")
    return made[0]


@pytest.fixture
def say(job, monkeypatch):
    """Return a function that runs `diffusion` in the job's folder, and returns its exit code."""

    def say(*arguments):
        monkeypatch.setattr(sys, "argv", ["diffusion", *map(str, arguments)])
        try:
            main()
        except SystemExit as left:
            return left.code or 0
        return 0

    return say


def test_the_run_has_what_made_its_model(job):
    client, _ = store(job)
    assert file_of(client, "2", LOCK) == Path("dvc.lock").read_text()
    params = yaml.safe_load(file_of(client, "2", PARAMS))
    assert params["train"]["seed"] == 1
    assert "CHANGED = True" in file_of(client, "2", CHANGES)
    assert json.loads(file_of(client, "2", DATA))["images"] == 1797
    for version in ("1", "2"):
        logged = client.get_run(find_named(client, NAME, version).run_id).data
        assert set(logged.params) == set(flattened(params))
        assert logged.params["sample.count"] == "60"
        assert logged.tags["threads"] == "1"
        assert logged.tags["precision"] == "float32"
        assert "processor" in logged.tags


def test_a_parameter_that_was_logged_keeps_its_value(job):
    client, _ = store(job)
    run_id = find_named(client, NAME, "1").run_id
    many = {f"more.{number}": "x" * 7000 for number in range(150)}
    assert log_lineage(client, run_id, {}, {"sample.count": "61"} | many) == ["sample.count"]
    params = client.get_run(run_id).data.params
    assert params["sample.count"] == "60"
    assert len(params["more.149"]) == 6000


def test_a_trace_says_where_the_champion_comes_from(made, say, capsys):
    assert say("trace") == 0
    text = capsys.readouterr().out
    assert f"commit   {made[1]}" in text
    assert f"changes  in {CHANGES} of the run, and on the page of this trace" in text
    for piece in ("kind digits", "1,797", "threads     1", "champion before  version 1", "train.seed  0 -> 1"):
        assert piece in text
    assert "version 2 is the champion now, and it was version 1" in text
    assert "not recorded" not in text
    measured = json.loads(Path("metrics/evaluate.json").read_text())
    assert say("trace", f"{NAME}@champion", "--json") == 0
    trace = json.loads(capsys.readouterr().out)
    assert trace == json.loads(Path("plots/trace.json").read_text())
    assert trace["metrics"]["frechet"] == {
        "value" if end == "" else end[1:]: measured[f"frechet{end}"]
        for end in ("", "_low", "_high", "_floor", "_ceiling")
    }
    assert trace["param_changes"] == [{"name": "train.seed", "before": "0", "now": "1"}]
    assert trace["data_changes"] == trace["missing"] == []
    assert "+CHANGED = True" in trace["diff"]
    page = Path("plots/trace.html").read_text()
    assert made[1] in page
    # What the checkout had beside its commit is text, and its addresses have no passwords.
    assert "+CHANGED = True" in page
    assert "&lt;b&gt;https://host/store" in page
    assert "canary" not in page + Path("plots/trace.json").read_text()
    assert not re.search(r">\[?(None|True|False)\b", page)
    assert ">null<" in page
    assert trace["runs"]["MLflow page"] in page
    assert "<script" not in page


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("None", "null"),
        ("True", "true"),
        ("[False, True, None]", "[false, true, null]"),
        ("[{'kind': 'frechet'}]", '[{"kind": "frechet"}]'),
        ("0.0001", "0.0001"),
        ("1e-4", "1e-4"),
        ("ddim", "ddim"),
        ("'quoted'", "'quoted'"),
        ("[1, 2", "[1, 2"),
        ("", ""),
    ],
)
def test_values_are_shown_as_params_yaml_has_them(value, shown):
    assert as_in_yaml(value) == shown


def test_a_trace_needs_no_pytorch():
    code = "import sys, diffusion_core.stages.trace; print('mlflow' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_the_first_version_has_none_before_it(say, capsys):
    assert say("trace", f"{NAME}/1", "--json") == 0
    trace = json.loads(capsys.readouterr().out)
    assert trace["code"]["changes"] == "none"
    assert (trace["before"], trace["parents"], trace["param_changes"]) == (None, {}, [])


def test_what_earlier_code_did_not_record_is_said(job, say, capsys):
    twin(job, "earlier", {"git_dirty": "true", "decision": None}, {PARAMS: None, LOCK: None, CHANGES: None})
    assert say("trace", "earlier/1") == 0
    text = capsys.readouterr().out
    assert "changes  not recorded, because it was trained by earlier code" in text
    assert f"trace: {PARAMS} and {LOCK} and {DATA} were not recorded" in text
    assert "trace: the machine was not recorded" in text


def test_a_trace_shows_no_markup_of_others(job, say):
    twin(job, "markup", {"git_commit": "<script>alert(1)</script>"})
    assert say("trace", "markup/1") == 0
    assert "<script" not in Path("plots/trace.html").read_text()


@pytest.mark.parametrize("command", ["trace", "reproduce"])
@pytest.mark.parametrize(
    ("version", "sentence"),
    [
        ("9", "diffusion has no version 9 in this store: its versions are 1, 2 (champion)"),
        ("challenger", "diffusion has no alias challenger"),
        ("../x", "has no alias x"),
        ("../../1", "has no version 1"),
        ("diffusion@", "names no version"),
    ],
)
def test_a_version_that_is_not_there_is_one_sentence(say, capsys, command, version, sentence):
    assert say(command, version) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert len(message.strip().splitlines()) == 1


@pytest.mark.parametrize("command", ["trace", "reproduce"])
def test_a_server_that_stops_answering_is_named(say, capsys, monkeypatch, command):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with dying_server() as address:
        monkeypatch.setenv("DIFFUSION_TRACKING_URI", address)
        assert say(command, "1") == 75
    assert f"the tracking store {address} stopped answering" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "tags", "files", "sentence"),
    [
        ("nocommit", {"git_commit": None}, {}, "has no commit, because it was trained outside of a git checkout"),
        ("notcommit", {"git_commit": "--upload-pack=x"}, {}, "'--upload-pack=x' is not a commit"),
        ("elsewhere", {"git_commit": "0" * 40}, {}, f"the commit {'0' * 40} is not in this clone: fetch it with"),
        ("nolock", {}, {LOCK: None}, "has no recorded dvc.lock, because earlier code published it"),
        ("nochanges", {}, {CHANGES: None}, "changes that are not recorded, because earlier code trained it"),
        ("damaged", {}, {LOCK: "stages: ["}, "is damaged"),
        ("torn", {}, {CHANGES: "diff --git a/x b/x\n"}, "`git apply` fails"),
        (
            "nodata",
            {},
            {},
            "data/prepared of that commit is not in DVC's cache, and there is no remote",
        ),
    ],
)
def test_what_cannot_be_made_again_is_one_sentence_and_leaves_nothing(job, say, capsys, name, tags, files, sentence):
    if name == "nodata":
        lock = yaml.safe_load(Path("dvc.lock").read_text())
        for out in lock["stages"]["prepare"]["outs"]:
            out["md5"] = "0" * 32 + out["md5"][32:]
        files = {LOCK: yaml.safe_dump(lock)}
    twin(job, name, tags, files)
    assert say("reproduce", f"{name}/1") == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert len(message.strip().splitlines()) == 1
    assert not Path(f".cache/reproduced/{name}-1").exists()
    assert git_worktrees() == 1


def git_worktrees():
    listed = subprocess.run(["git", "worktree", "list"], capture_output=True, text=True, check=True)
    return len(listed.stdout.splitlines())


def test_outside_of_a_checkout_and_in_a_folder_with_files_nothing_begins(say, capsys, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("mine")
    assert say("reproduce", "2", "--out", tmp_path) == 2
    assert f"{tmp_path} has other files than those of this version: name another" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert say("reproduce", "2") == 2
    assert "this folder is not a checkout of git" in capsys.readouterr().err


def state(job):
    """What a reproduction may not touch: the checkout's files, and the store."""
    kept = ("models", "params.yaml", "dvc.lock", "plots/loss.csv")
    files = [file for name in kept for file in [job / name, *sorted((job / name).glob("*"))] if file.is_file()]
    client, _ = store(job)
    runs = sorted(run.info.run_id for run in client.search_runs(["0", "1"]))
    return {file: file.read_bytes() for file in files}, runs, client.search_model_versions()


def test_a_version_is_made_again_to_the_last_bit_although_it_was_stopped(made, job, say, capsys, monkeypatch):
    before, out = state(job), job / ".cache/reproduced/diffusion-2"
    begun(out, NAME, made[1])

    def stopped(command, variables, take):
        def watched(output):
            take(output)
            # After the first step.
            if b"train: self-check" in output:
                signal.raise_signal(signal.SIGTERM)

        return run_child(command, variables, watched)

    monkeypatch.setattr(reproduce, "run_child", stopped)
    assert say("reproduce", f"{NAME}/2") == 128 + signal.SIGTERM
    assert list((out / "checkpoints").glob("*/step-*"))
    assert (out / "checkout/diffusion_core/mine.py").read_text().startswith("CHANGED = True")
    assert not (out / "checkout/half.py").exists()
    monkeypatch.setattr(reproduce, "run_child", run_child)
    assert say("reproduce", f"{NAME}/2") == 0
    told = capsys.readouterr().out
    assert "train: resumes after" in told
    assert "the weights are those of version 2 of diffusion to the last bit, in all 142 tensors" in told
    assert state(job) == before
    assert not out.exists()
    assert git_worktrees() == 1


def test_where_weights_part_is_said(made, job, say, capsys, monkeypatch):
    lock = yaml.safe_load(Path("dvc.lock").read_text())
    lock["stages"]["train"]["params"]["params.yaml"]["train.warmup_images"] = 128
    twin(job, "other", {}, {LOCK: yaml.safe_dump(lock)})
    before, out = state(job), job / ".cache/other-1"
    begun(out, "other", made[1])
    # A second thread for the last of the ten steps.
    monkeypatch.setenv("DIFFUSION_THREADS", "1 9:2")
    assert say("reproduce", "other/1", "--out", out) == 1
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert lines[3].startswith(f"reproduce: {out} stays, with the model made again in checkout/models")
    assert lines[0].startswith("reproduce: the weights are not those of version 1 of other: 142 of 142 tensors differ")
    assert lines[1].startswith("reproduce: they part at or before 64 images, where train/")
    assert "threads was 1 and is 1, 2 after 9 steps" in lines[2]
    assert state(job) == before
    assert (out / "checkout/models/model.safetensors").is_file()
    assert (out / "registered/model.safetensors").is_file()
    with chdir(out / "checkout"):
        assert yaml.safe_load(Path("params.yaml").read_text())["train"]["warmup_images"] == 128


def test_a_training_that_began_from_a_model_begins_from_its_copy(job, tmp_path):
    client, environment = store(job)
    digest = find_named(client, NAME, "1").tags["model_digest"]

    def copied(place, name, **kind):
        parent = {"name": name, "digest": digest, **kind}
        return reproduce._copied_parent(environment, tmp_path / place, parent)

    of_version = copied("version", f"{NAME}/1", kind="version")
    again, earlier = copied("again", str(of_version), kind="folder"), copied("earlier", f"{NAME}/1")
    assert model_digest(of_version) == model_digest(again) == model_digest(earlier) == digest
    with pytest.raises(UserError, match=f"began from {NAME}/2, which is another model now"):
        copied("other", f"{NAME}/2", kind="version")
    for name, problem in (("models", "is another model now"), ("imported", "is not here")):
        with pytest.raises(UserError, match=f"folder {name}, which {problem}: bring the .* sha256 {digest} to {job}"):
            copied("other", name, kind="folder")


def test_a_training_that_ended_by_time_ends_after_as_many_images(job):
    client, environment = store(job)
    made_of = origin(client, find_named(client, NAME, "2"))
    keys = {"validate_every_images": 50_000, "validation_share": 0.01}
    timed = replace(made_of, params={"train": {"minutes": 5, "images": 10**6} | keys, "sample": {}})
    folder = job / "timed"
    (folder / "registered").mkdir(parents=True)
    shutil.copy("models/model.json", folder / "registered")
    params = reproduce._params(environment, folder, timed)
    share = params["train"].pop("validation_share")
    assert params == {"train": {"minutes": None, "images": 320, "validate_every_images": 50_000}, "sample": {}}
    assert affordable_images(320, 50_000, share) == min(affordable_images(10**6, 50_000, 0.01), 739)
