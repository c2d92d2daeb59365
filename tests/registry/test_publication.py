import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from diffusion_core.config.environment import Environment
from diffusion_core.lineage.model_files import model_digest
from diffusion_core.registry.connection import connect, is_transient
from diffusion_core.registry.experiments import experiment_id
from diffusion_core.registry.publication import log_evaluation, original_run, register
from diffusion_core.registry.sending import RUN_KEY
from diffusion_core.registry.versions import find_version
from tests.faults.timed_tracking import Loses, mlflow_server
from tests.ports import free_port
from tests.registry.projects import UNKNOWN_RUN, write_model
from tests.registry.servers import serving

NAME = "diffusion"


@pytest.fixture
def client(environment):
    return connect(environment)


@pytest.fixture
def run(client, environment):
    run = client.create_run(experiment_id(client, environment))
    client.set_terminated(run.info.run_id)
    return client.get_run(run.info.run_id)


@pytest.fixture
def folder(tmp_path):
    write_model(tmp_path / "models")
    return tmp_path / "models"


def models_of(client, run):
    return client.search_logged_models([run.info.experiment_id])


def test_a_version_leads_to_its_run_and_has_its_tags(client, run, folder):
    version = register(client, run, NAME, folder, {"git_commit": "c"})
    assert version.run_id == run.info.run_id
    assert version.tags == {"git_commit": "c", "model_digest": model_digest(folder)}
    (model,) = models_of(client, run)
    assert version.source == f"models:/{model.model_id}"
    assert [output.model_id for output in client.get_run(run.info.run_id).outputs.model_outputs] == [model.model_id]


def test_the_run_stays_as_it_ended(client, run, folder):
    register(client, run, NAME, folder, {})
    after = client.get_run(run.info.run_id).info
    assert (after.status, after.end_time) == ("FINISHED", run.info.end_time)


def test_nothing_in_the_stored_model_is_pickled(client, run, folder, tmp_path):
    register(client, run, NAME, folder, {})
    files = {file.name for file in (tmp_path / "mlartifacts").rglob("*") if file.is_file()}
    assert {"model.safetensors", "model.json", "servable.py", "MLmodel"} <= files
    assert not {name for name in files if name.endswith((".pkl", ".pyc", ".pt", ".pickle"))}


def test_a_version_is_found_by_the_files_it_was_made_of(client, run, folder, tmp_path):
    version = register(client, run, NAME, folder, {})
    write_model(tmp_path / "other", seed=1)
    assert find_version(client, NAME, model_digest(folder)).version == version.version
    assert find_version(client, NAME, model_digest(tmp_path / "other")) is None
    assert find_version(client, "another", model_digest(folder)) is None


def test_a_model_that_was_stored_but_not_registered_is_not_stored_again(client, run, folder, monkeypatch):
    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(mlflow, "register_model", die)
        with pytest.raises(KeyboardInterrupt):
            register(client, run, NAME, folder, {})
    assert len(models_of(client, run)) == 1
    version = register(client, run, NAME, folder, {})
    (model,) = models_of(client, run)
    assert version.source == f"models:/{model.model_id}"


def test_a_model_whose_upload_was_cut_off_is_stored_anew(client, run, folder, monkeypatch):
    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_model_artifacts", die)
        with pytest.raises(KeyboardInterrupt):
            register(client, run, NAME, folder, {})
    (cut_off,) = models_of(client, run)
    version = register(client, run, NAME, folder, {})
    (model,) = models_of(client, run)
    assert model.model_id != cut_off.model_id
    assert version.source == f"models:/{model.model_id}"


def test_a_run_that_is_elsewhere_gets_one_stand_in(client, environment, run):
    client.set_tag(run.info.run_id, RUN_KEY, "k" * 32)
    assert original_run(client, environment, "k" * 32).info.run_id == run.info.run_id
    stand_in = original_run(client, environment, UNKNOWN_RUN)
    assert stand_in.data.tags["stands_in_for_run"] == UNKNOWN_RUN
    assert original_run(client, environment, UNKNOWN_RUN).info.run_id == stand_in.info.run_id
    assert client.get_run(stand_in.info.run_id).info.status == "FINISHED"


def test_figures_are_logged_when_they_change(client, run, tmp_path):
    (tmp_path / "grid.png").write_bytes(b"x")
    for figures in ({"a": 1.0, "b": float("nan")}, {"a": 1.0, "b": float("nan")}, {"a": 2.0, "b": 0.1}):
        log_evaluation(client, run, figures, {"samples": [tmp_path / "grid.png"]})
    assert [metric.value for metric in client.get_metric_history(run.info.run_id, "a")] == [1.0, 2.0]
    assert len(client.get_metric_history(run.info.run_id, "b")) == 2
    assert [file.path for file in client.list_artifacts(run.info.run_id, "samples")] == ["samples/grid.png"]


@pytest.fixture(scope="module")
def server_port(tmp_path_factory):
    port = free_port()
    with mlflow_server(tmp_path_factory.mktemp("server"), port):
        yield port


@pytest.fixture
def loses(server_port, tmp_path):
    """Return the environment of a server that loses the first answer to requests whose path ends so."""
    with serving(Loses) as proxy:

        def environment(path):
            proxy.behind, proxy.created, proxy.path_of_lost = server_port, 0, path
            return Environment(tracking_uri=f"http://127.0.0.1:{proxy.server_port}", experiment=path.replace("/", "-"))

        yield environment


@pytest.mark.parametrize("path", ["mlflow/logged-models", "mlflow/model-versions/create"])
def test_a_lost_answer_makes_no_second_model_and_no_second_version(loses, folder, tmp_path, path):
    environment = loses(path)
    client, name = connect(environment), environment.experiment
    client.create_experiment(name, artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment_id(client, environment))
    with pytest.raises(MlflowException) as error:
        register(client, run, name, folder, {})
    # So the flow does it again.
    assert is_transient(error.value)
    if find_version(client, name, model_digest(folder)) is None:
        register(client, run, name, folder, {})
    assert len(client.search_model_versions(f"name = '{name}'")) == 1
    assert len(models_of(client, run)) == 1


def test_a_lost_answer_about_a_new_experiment_is_no_refusal(loses):
    environment = loses("mlflow/experiments/create")
    client = connect(environment)
    with pytest.raises(MlflowException) as error:
        experiment_id(client, environment)
    assert is_transient(error.value)
    assert client.get_experiment(experiment_id(client, environment)).name == environment.experiment


def test_a_substitute_run_that_a_lost_answer_left_does_not_stay_running(loses):
    environment = loses("mlflow/runs/create")
    client = connect(environment)
    experiment_id(client, environment)
    with pytest.raises(MlflowException) as error:
        original_run(client, environment, UNKNOWN_RUN)
    assert is_transient(error.value)
    run = original_run(client, environment, UNKNOWN_RUN)
    assert client.get_run(run.info.run_id).info.status == "FINISHED"
    assert original_run(client, environment, UNKNOWN_RUN).info.run_id == run.info.run_id
