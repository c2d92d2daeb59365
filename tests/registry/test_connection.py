import json
import os
from pathlib import Path

import pytest

from diffusion_core.address import without_credentials, without_userinfo
from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.registry.connection import artifact_folder, connect, run_page, tracking_uri
from diffusion_core.registry.experiments import experiment_id
from tests.registry.projects import new_environment

SECRET = "canary"


@pytest.fixture(autouse=True)
def _variables(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        # So that what the code sets is taken back.
        monkeypatch.setenv(name, "")


def refusal(uri):
    with pytest.raises(UserError) as caught:
        connect(Environment(tracking_uri=uri))
    return str(caught.value)


def test_the_projects_own_variable_comes_first(monkeypatch):
    assert tracking_uri(Environment()) == f"sqlite:///{Path.cwd()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://a")
    assert tracking_uri(Environment()) == "http://a"
    assert tracking_uri(Environment(tracking_uri="http://b")) == "http://b"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:canary@host:5000/path?token=canary", "http://host:5000/path"),
        ("postgresql+psycopg://user:can@canary@host/db", "postgresql+psycopg://host/db"),
        ("http://user:can/canary@host", "http://host"),
        ("http://user:can?canary@host", "http://host"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
    ],
)
def test_no_userinfo_and_no_query_is_shown(uri, shown):
    assert without_userinfo(uri) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("url: https://h/x.zip?sig=canary\nsha256: 1 # ?\n", "url: https://h/x.zip\nsha256: 1 # ?\n"),
        ("{url: 'https://h/x?a=canary', kind: url}", "{url: 'https://h/x', kind: url}"),
        ("[https://h/x?a=can,ary, s3://canary:canary@h/y?b]", "[https://h/x, s3://h/y]"),
        (
            "# url: https://h/x?canary}ary\n{a: {url: https://h/x?a=canary}}",
            "# url: https://h/x\n{a: {url: https://h/x}}",
        ),
        ("why? s3://bucket/a (see https://h/x).", "why? s3://bucket/a (see https://h/x)."),
    ],
)
def test_no_credentials_are_in_a_text_and_the_rest_stays(text, shown):
    assert without_credentials(text) == shown


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:canary@127.0.0.1:1",
        "http://user:can%2Fcanary@127.0.0.1:1/path?token=canary",
        "http://user:can/canary@127.0.0.1:1",
        "http://user:canary@127.0.0.1:notaport",
        "http://user:canary@nowhere.invalid",
        "http://user:canary@[::1:5000",
        # A letter that becomes "a/c", for which Python's message shows the whole address.
        "http://user:canary@exa\u2100mple:5000",
        "postgresql://user:canary@127.0.0.1:1/db",
        "mysql+pymysql://user:canary@127.0.0.1:1/db",
        "postgresql://user:canary@127.0.0.1:notaport/db",
        "gopher://user:canary@127.0.0.1",
    ],
)
def test_a_store_that_cannot_be_reached_is_told_without_its_secret(uri):
    message = refusal(uri)
    assert "DIFFUSION_TRACKING_URI" in message
    assert "MLFLOW_TRACKING_URI" in message
    assert without_userinfo(uri) in message
    assert SECRET not in message
    assert "\n" not in message


@pytest.mark.timeout(60)
def test_a_server_that_never_answers_is_given_up_soon(silent_port):
    message = refusal(f"http://user:{SECRET}@127.0.0.1:{silent_port}")
    assert f"http://127.0.0.1:{silent_port}" in message
    assert SECRET not in message


@pytest.mark.parametrize("uri", ["sqlite:////nowhere/at/all/mlflow.db", "./mlruns", "file:///tmp/mlruns", "databricks"])
def test_a_store_that_cannot_be_opened_is_told(uri):
    assert "DIFFUSION_TRACKING_URI" in refusal(uri)


def test_a_file_that_is_no_database_is_told_and_left_alone(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("these are notes, not a database " * 100)
    before = file.read_bytes()
    assert "not a database" in refusal(f"sqlite:///{file}")
    assert file.read_bytes() == before


def test_credentials_reach_mlflow_beside_the_address():
    # The check fails after the credentials were taken out.
    refusal(f"http://some%40one:{SECRET}@127.0.0.1:1")
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "some@one"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == SECRET


def test_the_experiment_is_made_once_and_its_artifacts_lie_beside_the_store(environment, tmp_path):
    client = connect(environment)
    experiment = experiment_id(client, environment)
    assert experiment_id(client, environment) == experiment
    assert client.get_experiment(experiment).artifact_location == (tmp_path / "mlartifacts").as_uri()


def test_an_experiment_says_what_it_is_and_keeps_what_somebody_wrote(environment):
    client = connect(environment)
    made = client.create_experiment(environment.experiment, tags={"mlflow.note.content": "mine"})
    experiment_id(client, environment)
    tags = client.get_experiment(made).tags
    assert tags["mlflow.note.content"] == "mine"
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(tags["mlflow.sharedViewState.metrics"])
    assert "metrics.`frechet`" in json.loads(view["state"])["selectedColumns"]


def test_a_deleted_experiment_is_told(environment):
    client = connect(environment)
    client.delete_experiment(experiment_id(client, environment))
    with pytest.raises(UserError, match="DIFFUSION_EXPERIMENT"):
        experiment_id(client, environment)


def test_artifacts_of_other_databases_lie_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert artifact_folder("postgresql://u:p@host/db") == tmp_path / "mlartifacts"
    assert artifact_folder("sqlite:///mlflow.db") == tmp_path / "mlartifacts"
    assert artifact_folder("sqlite:////srv/mlflow.db") == Path("/srv/mlartifacts")


def test_a_run_has_a_page():
    page = run_page(Environment(tracking_page="https://host/mlflow/"), "1", "abc")
    assert page == "https://host/mlflow/#/experiments/1/runs/abc?workflowType=machine_learning"
    page = run_page(Environment(tracking_uri="https://user:canary@host:8080/"), "1", "abc")
    assert page.startswith("https://host:8080/#/experiments/1/runs/abc?")
    assert run_page(Environment(), "1", "abc").startswith("http://127.0.0.1:5000/#/experiments/1/runs/abc?")


def test_a_database_that_was_moved_is_told_before_anything_is_written_to_the_old_place(tmp_path, monkeypatch):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "one")
    environment = new_environment(tmp_path / "one")
    experiment_id(connect(environment), environment)
    (tmp_path / "one" / "mlflow.db").rename(tmp_path / "other" / "mlflow.db")
    monkeypatch.chdir(tmp_path / "other")
    moved = Environment(tracking_uri=f"sqlite:///{tmp_path}/other/mlflow.db")
    with pytest.raises(UserError, match=r"one/mlartifacts.*move it back, or set DIFFUSION_EXPERIMENT"):
        experiment_id(connect(moved), moved)
    another = moved.model_copy(update={"experiment": "another"})
    experiment = connect(another).get_experiment(experiment_id(connect(another), another))
    assert experiment.artifact_location == (tmp_path / "other/mlartifacts").as_uri()
