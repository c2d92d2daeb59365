import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from diffusion_core.generation import generate
from diffusion_core.lineage.saved_model import load_model
from diffusion_core.registry.connection import connect, experiment_id, tracking_uri
from diffusion_core.registry.publication import register
from diffusion_core.samplers.ddim import DDIM
from diffusion_core.samplers.guidance import Guidance
from tests.registry.projects import new_environment, write_model

FAST = {"steps": 2}


def publish(folder, num_classes, **shape):
    environment = new_environment(folder)
    client = connect(environment)
    write_model(folder / "models", num_classes=num_classes, **shape)
    run = client.create_run(experiment_id(client, environment))
    return environment, register(client, run, "diffusion", folder / "models", {})


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditional")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        environment, version = publish(folder, num_classes=3)
        yield folder, environment, version


@pytest.fixture(scope="module")
def model(published):
    _, _, version = published
    return mlflow.pyfunc.load_model(f"models:/{version.name}/{version.version}")


def test_n_images_come_out_as_bytes(model):
    images = model.predict(pd.DataFrame(), params={"n": 3, **FAST})
    assert (images.shape, images.dtype) == ((3, 8, 8, 1), np.uint8)


def test_every_parameter_has_a_default(model):
    assert model.predict(pd.DataFrame()).shape == (16, 8, 8, 1)


def test_images_are_those_of_generate(model, published):
    folder, _, _ = published
    saved = load_model(folder / "models")
    diffusion, labels = saved.diffusion, saved.labels(4)
    assert len(set(labels)) == 3
    params = {"n": 4, "steps": 3, "seed": 5, "eta": 0.5, "guidance": 2.0}
    expected, _ = generate(
        diffusion, 4, labels=labels, seed=5, sampler=DDIM(steps=3, eta=0.5), guidance=Guidance(scale=2.0)
    )
    assert np.array_equal(model.predict(pd.DataFrame(), params=params), expected)
    expected, _ = generate(diffusion, 2, seed=0, sampler=DDIM(steps=2), labels=[2, 1])
    assert np.array_equal(model.predict(pd.DataFrame({"label": [2, 1]}), params=FAST), expected)


def test_one_image_a_label_whatever_n_is(model):
    assert len(model.predict(pd.DataFrame({"label": [0, 1, 2]}), params={"n": 7, **FAST})) == 3


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": -1}, "n is -1"),
        ({"n": 1, "steps": 0}, "steps is 0"),
        ({"n": 1, "steps": 9}, "steps is 9.*8 timesteps"),
        ({"n": 1, "eta": 2.0, **FAST}, "eta is 2"),
        ({"n": "many"}, "Invalid parameters"),
        ({"n": 1.5}, "Invalid parameters"),
    ],
)
def test_a_parameter_outside_its_range_is_a_bad_request(model, params, message):
    with pytest.raises(MlflowException, match=message) as caught:
        model.predict(pd.DataFrame(), params=params)
    assert caught.value.get_http_status_code() == 400


@pytest.mark.parametrize("label", [3, -1, "a", 0.5])
def test_a_label_that_no_class_has_is_a_bad_request(model, label):
    with pytest.raises(MlflowException, match="label") as caught:
        model.predict(pd.DataFrame({"label": [label]}), params=FAST)
    assert caught.value.get_http_status_code() == 400


def test_a_model_without_classes_takes_no_labels_and_no_guidance(tmp_path):
    publish(tmp_path, num_classes=None)
    model = mlflow.pyfunc.load_model("models:/diffusion/1")
    assert model.predict(pd.DataFrame(), params={"n": 2, **FAST}).shape == (2, 8, 8, 1)
    for table, params in ((pd.DataFrame({"label": [0]}), FAST), (pd.DataFrame(), {"guidance": 2.0, **FAST})):
        with pytest.raises(MlflowException, match="class"):
            model.predict(table, params=params)


def test_a_model_of_rectangles_says_and_gives_height_before_width(tmp_path):
    publish(tmp_path, num_classes=None, image_size=(8, 16), channels=4)
    model = mlflow.pyfunc.load_model("models:/diffusion/1")
    assert model.metadata.signature.outputs.inputs[0].shape == (-1, 8, 16, 4)
    assert model.predict(pd.DataFrame(), params={"n": 2, **FAST}).shape == (2, 8, 16, 4)


PROGRAM = """
import mlflow, pandas
model = mlflow.pyfunc.load_model("models:/diffusion/1")
images = model.predict(pandas.DataFrame(), params={"n": 2, "steps": 2})
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
