import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest
from mlflow.exceptions import MlflowException

from diffusion_core.config.settings import SampleSettings
from diffusion_core.generation import generate
from diffusion_core.lineage.saved_model import load_model
from diffusion_core.registry.connection import connect, tracking_uri
from diffusion_core.registry.experiments import experiment_id
from diffusion_core.registry.publication import record_sample, register
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.samplers.ddpm import DDPM
from diffusion_core.samplers.dpm_solver import DPMSolver
from diffusion_core.samplers.guidance import Guidance
from diffusion_core.samplers.heun import Heun
from tests.faults.commands import wait_for
from tests.ports import free_port
from tests.registry.projects import new_environment, write_model

FAST = {"steps": 2}
CLASSES = ("airplane", "cat", "dog")
JUDGED = SampleSettings(
    count=5,
    seed=7,
    sampler=DDIM(steps=3, eta=0.5, spacing="leading"),
    guidance=Guidance(2.0, rescale=0.5, interval=(0.1, 5.0)),
)


def publish(folder, num_classes, sample=None, **shape):
    environment = new_environment(folder)
    client = connect(environment)
    write_model(folder / "models", num_classes=num_classes, **shape)
    run = client.create_run(experiment_id(client, environment))
    return environment, register(client, run, "diffusion", folder / "models", {}, sample)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        environment, version = publish(folder, num_classes=3, sample=JUDGED, classes=CLASSES)
        yield folder, environment, version


@pytest.fixture(scope="module")
def model(published):
    _, _, version = published
    return mlflow.pyfunc.load_model(f"models:/{version.name}/{version.version}")


def expected(published, count, labels=None, **options):
    folder, _, _ = published
    saved = load_model(folder / "models")
    labels = saved.labels(count) if labels is None else labels
    return generate(saved.diffusion, count, labels=labels, **options)[0]


def test_images_come_with_their_labels_and_classes(model):
    made = model.predict(pd.DataFrame(), params={"n": 3, **FAST})
    assert (made["images"].shape, made["images"].dtype) == ((3, 8, 8, 1), np.uint8)
    assert [CLASSES[label] for label in made["label"]] == list(made["class"])


def test_the_defaults_are_the_settings_by_which_the_gate_judged_it(model, published):
    as_judged = expected(published, 16, seed=7, sampler=JUDGED.sampler, guidance=JUDGED.guidance)
    assert np.array_equal(model.predict(pd.DataFrame())["images"], as_judged)
    # The control: usual settings give other images.
    assert not np.array_equal(as_judged, expected(published, 16, seed=7, sampler=DDIM(steps=8)))


@pytest.mark.parametrize(
    ("params", "sampler", "guidance"),
    [
        ({"sampler": "ddpm", "steps": 4, "spacing": "trailing"}, DDPM(steps=4, spacing="trailing"), JUDGED.guidance),
        ({"sampler": "ddim", "eta": 1.0}, DDIM(steps=3, eta=1.0, spacing="leading"), JUDGED.guidance),
        ({"sampler": "dpm_solver"}, DPMSolver(steps=3, spacing="leading"), JUDGED.guidance),
        ({"sampler": "heun", "rho": 3.0}, Heun(steps=3, rho=3.0), JUDGED.guidance),
        ({"guidance": 1.5, "guidance_rescale": 0.0, "guidance_interval": []}, JUDGED.sampler, Guidance(1.5)),
    ],
)
def test_every_sampler_and_guidance_can_be_asked_for(model, published, params, sampler, guidance):
    images = model.predict(pd.DataFrame(), params={"n": 3, "seed": 5, **params})["images"]
    assert np.array_equal(images, expected(published, 3, seed=5, sampler=sampler, guidance=guidance))


def test_classes_are_named_by_label_by_name_or_for_all_images(model):
    by_label = model.predict(pd.DataFrame({"label": [2, 1]}), params={"n": 7, **FAST})
    by_name = model.predict(pd.DataFrame({"class": ["dog", "cat"]}), params=FAST)
    assert list(by_label["class"]) == ["dog", "cat"]
    assert np.array_equal(by_label["images"], by_name["images"])
    assert list(model.predict(pd.DataFrame(), params={"n": 2, "class": "cat", **FAST})["class"]) == ["cat", "cat"]


def test_the_signature_and_the_metadata_say_what_can_be_asked_for(model):
    defaults = {spec.name: spec.default for spec in model.metadata.signature.params.params}
    assert {"n", "class", "seed", "sampler", "steps", "eta", "spacing", "guidance"} <= set(defaults)
    assert (defaults["seed"], defaults["steps"], defaults["guidance_interval"]) == (7, 3, [0.1, 5.0])
    assert model.metadata.metadata["classes"] == list(CLASSES)


def test_settings_of_another_evaluation_become_the_defaults(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    environment, version = publish(tmp_path, num_classes=3, sample=JUDGED)
    client = connect(environment)
    record_sample(client, version, tmp_path / "models", JUDGED)
    other = SampleSettings(sampler=Heun(steps=6))
    record_sample(client, client.get_model_version("diffusion", "1"), tmp_path / "models", other)
    model = mlflow.pyfunc.load_model("models:/diffusion/1")
    defaults = {spec.name: spec.default for spec in model.metadata.signature.params.params}
    assert (defaults["sampler"], defaults["steps"], defaults["seed"]) == ("heun", 6, 0)
    assert len(model.predict(pd.DataFrame())["images"]) == 16


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": -1}, "n is -1"),
        ({"n": 10**9}, "n is 1000000000: at most 1024"),
        ({"n": 10**9, "class": "cat"}, "n is 1000000000: at most 1024"),
        ({"n": 1, "steps": 0}, "steps is 0"),
        ({"n": 1, "steps": 10**9}, "steps is 1000000000: at most 8"),
        ({"n": 1, "steps": 10**9, "sampler": "heun"}, "steps is 1000000000: at most 8"),
        ({"n": 1, "eta": 2.0, **FAST}, "eta is 2"),
        ({"n": 1, "seed": -1}, "seed is -1"),
        ({"n": 1, "guidance": -1.0}, "guidance.scale is -1"),
        ({"n": 1, "guidance_interval": [3.0, 1.0]}, "guidance.interval"),
        ({"n": 1, "sampler": "dim"}, "did you mean ddim"),
        ({"n": 1, "spacing": "x"}, "spacing is 'x'"),
        ({"n": 1, "class": "catt"}, "did you mean cat"),
        ({"n": "many"}, "Invalid parameters"),
        ({"n": 1.5}, "Invalid parameters"),
    ],
)
def test_a_parameter_outside_its_range_is_a_bad_request(model, params, message):
    with pytest.raises(MlflowException, match=message) as caught:
        model.predict(pd.DataFrame(), params=params)
    assert caught.value.get_http_status_code() == 400


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"label": [3]}, "label is 3"),
        ({"label": [-1]}, "label is -1"),
        ({"label": ["a"]}, "label is 'a'"),
        ({"label": [0.5]}, "label is 0.5"),
        ({"label": [True]}, "label is "),
        ({"class": ["airplan"]}, "did you mean airplane"),
        ({"lable": [1]}, "'lable' is not known: did you mean label"),
        ({"label": [1], "clas": ["cat"]}, "'clas' is not known: did you mean class"),
        ({"label": [1], "class": ["cat"]}, "label and class: leave one out"),
        ({"label": [1] * 1025}, "n is 1025: at most 1024"),
    ],
)
def test_a_table_that_is_not_one_of_classes_is_a_bad_request(model, table, message):
    with pytest.raises(MlflowException, match=message) as caught:
        model.predict(pd.DataFrame(table), params=FAST)
    assert caught.value.get_http_status_code() == 400


def test_the_limits_are_those_of_the_environment(published, monkeypatch):
    _, environment, version = published
    connect(environment)
    monkeypatch.setenv("DIFFUSION_PYFUNC_IMAGES", "4")
    monkeypatch.setenv("DIFFUSION_PYFUNC_STEPS", "3")
    limited = mlflow.pyfunc.load_model(f"models:/{version.name}/{version.version}")
    assert len(limited.predict(pd.DataFrame(), params={"n": 4})["images"]) == 4
    for params in ({"n": 5}, {"n": 1, "steps": 4}):
        with pytest.raises(MlflowException, match=r"at most [43] are allowed"):
            limited.predict(pd.DataFrame(), params=params)


@pytest.mark.parametrize("value", ["lots", "0", "-1", "1.5"])
def test_a_limit_that_is_not_a_number_is_named(published, monkeypatch, value):
    _, environment, version = published
    connect(environment)
    monkeypatch.setenv("DIFFUSION_PYFUNC_IMAGES", value)
    with pytest.raises(MlflowException, match=f"DIFFUSION_PYFUNC_IMAGES is '{value}': it must be a whole number"):
        mlflow.pyfunc.load_model(f"models:/{version.name}/{version.version}")


def test_work_ends_with_the_time_of_mlflows_server(model, monkeypatch):
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "0")
    with pytest.raises(MlflowException, match="time for a request is over"):
        model.predict(pd.DataFrame())


def test_a_model_without_classes_takes_no_labels_and_no_guidance(tmp_path):
    publish(tmp_path, num_classes=None)
    model = mlflow.pyfunc.load_model("models:/diffusion/1")
    made = model.predict(pd.DataFrame(), params={"n": 2, **FAST})
    assert list(made) == ["images"]
    assert made["images"].shape == (2, 8, 8, 1)
    for table, params in ((pd.DataFrame({"label": [0]}), FAST), (pd.DataFrame(), {"guidance": 2.0, **FAST})):
        with pytest.raises(MlflowException, match="class"):
            model.predict(table, params=params)


def test_a_model_of_rectangles_says_and_gives_height_before_width(tmp_path):
    publish(tmp_path, num_classes=None, image_size=(8, 16), channels=4)
    model = mlflow.pyfunc.load_model("models:/diffusion/1")
    assert model.metadata.signature.outputs.inputs[0].shape == (-1, 8, 16, 4)
    assert model.predict(pd.DataFrame(), params={"n": 2, **FAST})["images"].shape == (2, 8, 16, 4)


PROGRAM = """
import mlflow, pandas
model = mlflow.pyfunc.load_model("models:/diffusion/1")
images = model.predict(pandas.DataFrame(), params={"n": 2, "steps": 2})["images"]
import diffusion_core
print(images.shape, diffusion_core.__file__)
"""


def test_a_fresh_process_runs_the_code_that_came_with_the_model(published, tmp_path):
    _, environment, _ = published
    variables = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri(environment)}
    # -P and -I would also drop the current folder; it is an empty one, and the checkout is only installed.
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=variables, capture_output=True, text=True, check=True
    )
    shape, _, file = run.stdout.strip().rpartition(" ")
    assert shape == "(2, 8, 8, 1)"
    assert "mlartifacts" in file
    checkout = Path(__file__).parents[2]
    assert not Path(file).is_relative_to(checkout)


def test_the_requirements_name_versions_that_any_machine_can_install(published):
    folder, _, _ = published
    (requirements,) = folder.rglob("requirements.txt")
    lines = requirements.read_text().split()
    assert {line.partition("==")[0] for line in lines} >= {"mlflow", "numpy", "safetensors", "torch"}
    assert all("==" in line and "+" not in line for line in lines)


@pytest.fixture
def address(published, tmp_path):
    """Where `mlflow models serve` serves the version, and its process."""
    _, environment, version = published
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "--port", str(port)]
    command += ["--model-uri", f"models:/{version.name}/{version.version}"]
    variables = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri(environment)}
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    server = subprocess.Popen(command, cwd=tmp_path, env=variables, start_new_session=True)
    try:
        wait_for(lambda: answers(port), seconds=60.0)
        yield f"http://127.0.0.1:{port}/invocations", psutil.Process(server.pid)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def answers(port):
    try:
        return urlopen(f"http://127.0.0.1:{port}/ping", timeout=1).status == 200
    except OSError:
        return False


def ask(url, **body):
    content = json.dumps({"dataframe_split": {"columns": [], "data": []}, **body}).encode()
    try:
        with urlopen(Request(url, content, {"Content-Type": "application/json"}), timeout=20) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, error.read().decode()


def busy_seconds(process):
    return sum(sum(each.cpu_times()[:2]) for each in [process, *process.children(recursive=True)])


@pytest.mark.servers
def test_mlflows_server_answers_refuses_and_is_idle_afterwards(address):
    url, process = address
    status, answer = ask(url, dataframe_split={"columns": ["class"], "data": [["cat"], ["dog"]]}, params=FAST)
    assert (status, answer["predictions"]["class"]) == (200, ["cat", "dog"])
    assert np.array(answer["predictions"]["images"]).shape == (2, 8, 8, 1)
    for wrong, message in (
        ({"params": {"n": 10**9}}, "at most 1024"),
        ({"params": {"n": 1, "steps": 10**9}}, "at most 8"),
        ({"params": {"n": 1, "seed": -1}}, "seed is -1"),
        ({"dataframe_split": {"columns": ["lable"], "data": [[1]]}}, "did you mean label"),
    ):
        status, answer = ask(url, **wrong)
        assert status == 400
        assert message in answer
    before = busy_seconds(process)
    time.sleep(1.0)
    assert busy_seconds(process) - before < 0.5
