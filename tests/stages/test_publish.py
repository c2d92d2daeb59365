import hashlib
import json
from pathlib import Path

import mlflow
import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import EvaluateSettings
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.lineage.model_files import model_digest
from diffusion_core.lineage.outbox import Outbox
from diffusion_core.lineage.queue_errors import InaccessibleQueue
from diffusion_core.lineage.recorded import LOCK, PARAMS
from diffusion_core.registry import publication
from diffusion_core.registry.connection import connect, store_name
from diffusion_core.registry.evaluation_table import TABLE
from diffusion_core.registry.experiments import experiment_id
from diffusion_core.registry.run_files import run_file
from diffusion_core.registry.sending import RUN_KEY, find_run
from diffusion_core.registry.tracking import replay
from diffusion_core.registry.versions import recorded_evaluation, recorded_sample, stored_model
from diffusion_core.stages import publish
from diffusion_core.stages.moved import add_moved
from tests.registry.projects import (
    SAMPLE,
    UNKNOWN_RUN,
    evaluate_model,
    published_versions,
    read_evaluation,
    read_figures,
    write_figures,
    write_model,
    write_reference,
    write_run_info,
    write_trained_project,
)
from tests.registry.trainings import waiting

NAME = "diffusion"


@pytest.fixture
def environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_trained_project(tmp_path)


def run_stage(environment):
    publish.run(environment)


def runs(environment):
    client = connect(environment)
    return client.search_runs([experiment_id(client, environment)])


def test_a_version_bears_what_it_was_made_of_and_what_was_measured(environment, tmp_path):
    run_stage(environment)
    (version,) = published_versions(environment)
    assert version.tags["git_commit"] == "c" * 40
    assert version.tags["git_dirty"] == "false"
    assert version.tags["dataset_md5"] == "5" * 32 + ".dir"
    assert version.tags["dataset_digest"] == "d" * 64
    assert recorded_evaluation(version) == read_evaluation(tmp_path).evaluation
    assert version.tags["model_digest"] == model_digest(tmp_path / "models")
    assert recorded_evaluation(version).figures == read_figures(tmp_path)


def test_the_run_that_trained_the_model_gets_figures_and_pictures(environment, tmp_path):
    run_stage(environment)
    (version,) = published_versions(environment)
    (run,) = runs(environment)
    assert version.run_id == run.info.run_id
    evaluation = read_evaluation(tmp_path).evaluation
    values = {name: each.value for name, each in evaluation.estimates.items()}
    assert run.data.metrics == pytest.approx(evaluation.counts | values)
    assert run.info.status == "FINISHED"
    client = connect(environment)
    files = [file.path for folder in ("samples", "plots") for file in client.list_artifacts(run.info.run_id, folder)]
    assert files == ["samples/grid.png", "plots/nearest.png"]


def unavailable(*_):
    raise Unavailable("the store has gone")


def test_the_run_gets_what_the_flow_run_that_published_its_model_moved(environment, monkeypatch):
    for flow_run, count in {"first": 5_000_000, "second": 7}.items():
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", flow_run)
        add_moved(flow_run, "pull", count)
        run_stage(environment)
        (run,) = runs(environment)
        assert run.data.metrics["cost/pull_network_gb"] == pytest.approx(0.005)


def test_what_was_moved_is_not_lost_when_the_store_goes_after_the_version_is_there(environment, monkeypatch):
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "first")
    add_moved("first", "pull", 5_000_000)
    with monkeypatch.context() as patch:
        patch.setattr(publish, "log_metrics", unavailable)
        with pytest.raises(Unavailable):
            run_stage(environment)
    assert published_versions(environment)
    run_stage(environment)
    (run,) = runs(environment)
    assert run.data.metrics["cost/pull_network_gb"] == pytest.approx(0.005)


def test_mlflows_pages_show_the_evaluation_its_model_and_its_samples(environment, tmp_path):
    run_stage(environment)
    (version,) = published_versions(environment)
    client = connect(environment)
    run = client.get_run(version.run_id)
    note = run.data.tags["mlflow.note.content"]
    assert f"[version 1 of {NAME}](#/models/{NAME}/versions/1)" in note
    assert f"![samples](get-artifact?path=samples%2Fgrid.png&run_uuid={version.run_id})" in note
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": TABLE, "type": "table"}]
    table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/{TABLE}")
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["data"]}
    figures = read_figures(tmp_path)
    assert rows["frechet"]["value"] == pytest.approx(figures["frechet"])
    assert rows["frechet"]["floor"] == pytest.approx(figures["frechet_floor"])
    model = client.get_logged_model(stored_model(version))
    assert {metric.key: metric.value for metric in model.metrics}["frechet"] == pytest.approx(figures["frechet"])
    assert recorded_sample(version) == SAMPLE
    assert json.loads(version.tags["outputs"]) == {}


def test_what_somebody_wrote_above_and_below_stays_and_nothing_is_written_twice(environment):
    run_stage(environment)
    (version,) = published_versions(environment)
    client = connect(environment)
    written = client.get_run(version.run_id).data.tags["mlflow.note.content"]
    client.set_tag(version.run_id, "mlflow.note.content", f"Mine.\n\n{written}\n\nMy notes.")
    run_stage(environment)
    assert client.get_run(version.run_id).data.tags["mlflow.note.content"] == f"Mine.\n\n{written}\n\nMy notes."


@pytest.mark.parametrize(
    ("page", "ending"), [(None, ", a page that opens while `make serve` runs"), ("https://mlflow.example.org", "")]
)
def test_a_page_that_only_make_serve_opens_is_told_with_it(environment, capsys, page, ending):
    publish.run(environment.model_copy(update={"tracking_page": page}))
    (version,) = published_versions(environment)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"publish: version 1 of {NAME}, trained by {page or 'http://127.0.0.1:5000'}/#/experiments/")
    assert line.endswith(f"/runs/{version.run_id}?workflowType=machine_learning{ending}")


def test_publishing_twice_makes_one_version_and_logs_nothing_twice(environment):
    run_stage(environment)
    (first,) = published_versions(environment)
    run_stage(environment)
    (second,) = published_versions(environment)
    assert second == first
    (run,) = runs(environment)
    assert len(connect(environment).get_metric_history(run.info.run_id, "frechet")) == 1
    assert len(run.outputs.model_outputs) == 1


def test_other_figures_of_the_same_model_are_brought_up_to_date(environment, tmp_path):
    run_stage(environment)
    (first,) = published_versions(environment)
    write_reference(tmp_path / "data/reference", seed=1)
    evaluate_model(tmp_path)
    run_stage(environment)
    (second,) = published_versions(environment)
    assert recorded_evaluation(second).figures == read_figures(tmp_path) != recorded_evaluation(first).figures
    assert recorded_evaluation(second).key != recorded_evaluation(first).key


def test_a_figure_that_is_measured_no_more_leaves_the_version(environment, tmp_path):
    run_stage(environment)
    write_figures(tmp_path, recall=None)
    run_stage(environment)
    (version,) = published_versions(environment)
    assert recorded_evaluation(version).figures == read_figures(tmp_path)
    assert "recall" not in read_figures(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [{"evaluate": EvaluateSettings(seed=1)}, {"sample": SAMPLE.model_copy(update={"seed": SAMPLE.seed + 1})}],
)
def test_other_measuring_makes_another_key(environment, tmp_path, settings):
    run_stage(environment)
    (first,) = published_versions(environment)
    evaluate_model(tmp_path, **settings)
    run_stage(environment)
    (second,) = published_versions(environment)
    assert recorded_evaluation(second).key != recorded_evaluation(first).key


def test_another_model_is_another_version(environment, tmp_path):
    run_stage(environment)
    write_model(tmp_path / "models", seed=1)
    evaluate_model(tmp_path)
    run_stage(environment)
    assert [int(version.version) for version in published_versions(environment)] == [1, 2]


def test_a_version_whose_recording_was_cut_off_is_completed(environment, tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(publish, "record_evaluation", die)
        with pytest.raises(KeyboardInterrupt):
            run_stage(environment)
    assert recorded_evaluation(published_versions(environment)[0]) is None
    run_stage(environment)
    (version,) = published_versions(environment)
    assert recorded_evaluation(version).figures == read_figures(tmp_path)


LOCKED = """stages:
  ingest: {{params: {{params.yaml: {{ingest.source: {{kind: url, url: 'https://h/b.zip?sig=canary'}}}}}}}}
  train: {{params: {params}, outs: [{{path: models/model.safetensors, md5: {md5}}}]}}
"""


def lock(params):
    md5 = hashlib.md5(Path("models/model.safetensors").read_bytes()).hexdigest()
    Path("dvc.lock").write_text(LOCKED.format(params=params, md5=md5))


def test_the_store_gets_no_secret_of_an_address(environment, tmp_path):
    lock(params="{}")
    Path("params.yaml").write_text("ingest:\n  source: {kind: url, url: https://h/a.zip?sig=canary}  # of the store\n")
    run_stage(environment)
    (version,) = published_versions(environment)
    client = connect(environment)
    run = client.get_run(version.run_id)
    assert run.data.params["ingest.source.url"] == "https://h/b.zip"
    assert run_file(client, run, PARAMS) == b"ingest:\n  source: {kind: url, url: https://h/a.zip}  # of the store\n"
    assert b"'https://h/b.zip'" in run_file(client, run, LOCK)
    assert b"canary" in Path("params.yaml").read_bytes() + Path("dvc.lock").read_bytes()
    written = [tmp_path / "mlflow.db", *(file for file in (tmp_path / "mlartifacts").rglob("*") if file.is_file())]
    assert not [file for file in written if b"canary" in file.read_bytes()]


@pytest.mark.parametrize(
    ("params", "locked", "sentence"),
    [
        ("a: [", "{}", r"params\.yaml cannot be read \(.*\): correct it"),
        ("[1, 2]", "{}", r"params\.yaml cannot be read \(ingest.source has no place in params\.yaml\)"),
        ("a: 1", "{params.yaml: 3}", r"dvc\.lock cannot be read: restore it from git"),
    ],
)
def test_params_that_cannot_be_read_are_told(environment, params, locked, sentence):
    lock(params=locked)
    Path("params.yaml").write_text(params)
    with pytest.raises(UserError, match=sentence):
        run_stage(environment)


def test_a_model_of_another_store_is_published_under_a_stand_in(environment, tmp_path, capsys):
    write_run_info(tmp_path / "models", UNKNOWN_RUN)
    run_stage(environment)
    assert UNKNOWN_RUN in capsys.readouterr().out
    (version,) = published_versions(environment)
    run = connect(environment).get_run(version.run_id)
    assert run.data.tags[publication.STANDS_IN_FOR] == UNKNOWN_RUN
    run_stage(environment)
    assert len(runs(environment)) == 2


def test_a_version_keeps_its_stand_in_when_the_right_run_arrives_later(environment, tmp_path, caplog):
    """MLflow cannot give a version another run, so the stand-in's tag leads to the right one."""
    outbox = waiting("a")
    outbox.set_store(store_name(Environment(tracking_uri="http://127.0.0.1:1")))
    write_run_info(tmp_path / "models", outbox.key)
    run_stage(environment)
    assert "with `diffusion replay --any-store`" in caplog.text
    assert replay(environment, any_store=True) == 2
    run_stage(environment)
    (version,) = published_versions(environment)
    client = connect(environment)
    stand_in, run = client.get_run(version.run_id), client.get_run(find_run(client, outbox.key))
    assert stand_in.data.tags[publication.STANDS_IN_FOR] == run.data.tags[RUN_KEY] == outbox.key
    # What is measured later goes to the right one.
    assert run.data.metrics["frechet"] == pytest.approx(read_figures(tmp_path)["frechet"])


def test_queues_of_other_trainings_stop_no_publication(environment, tmp_path, capsys):
    """Only the model's own is sent, and one that cannot be sent is told."""
    others = [Outbox(tmp_path / f".checkpoints/{name}/outbox") for name in ("a", "b", "c")]
    for outbox in others:
        outbox.append({"kind": "tag", "key": "a", "value": "b"})
    (others[0].folder / "entries.jsonl").write_bytes(b"{}\n")
    (others[2].folder / "key").unlink()
    (others[2].folder / "key").mkdir()
    run_stage(environment)
    assert len(published_versions(environment)) == 1
    assert not any(outbox.is_empty() for outbox in others)
    assert "outbox" not in capsys.readouterr().out
    # The control: the queue of its own training.
    (others[0].folder / "key").write_text("0" * 32)
    write_run_info(tmp_path / "models", "0" * 32)
    run_stage(environment)
    assert "publish: .checkpoints/a/outbox/entries.jsonl is damaged" in capsys.readouterr().out


def test_a_run_that_may_still_arrive_gets_no_stand_in(environment, tmp_path):
    outbox = waiting("a")
    write_run_info(tmp_path / "models", outbox.key)
    with outbox.sending(), pytest.raises(Unavailable, match=r"another process sends what .*/a/outbox"):
        run_stage(environment)
    (outbox.folder / ".sending").unlink()
    (outbox.folder / ".sending").mkdir()
    with pytest.raises(InaccessibleQueue):
        run_stage(environment)
    assert published_versions(environment) == []
    (outbox.folder / ".sending").rmdir()
    run_stage(environment)
    (version,) = published_versions(environment)
    assert connect(environment).get_run(version.run_id).data.tags[RUN_KEY] == outbox.key


def test_the_flow_is_told_version_and_page(environment, tmp_path):
    run_stage(environment)
    told = json.loads((tmp_path / ".cache/publication.json").read_text())
    (run,) = runs(environment)
    assert (told["model"], told["version"]) == (NAME, 1)
    assert told["page"].endswith(f"/runs/{run.info.run_id}?workflowType=machine_learning")
