"""Every variable that a container is given is one that somebody in it reads."""

import re
from pathlib import Path

import botocore.configprovider
import botocore.credentials
import dvc.env
import mlflow.environment_variables
import pytest
from prefect.settings import Settings
from prefect.settings.legacy import _get_valid_setting_names

from diffusion_core.config.environment import Environment
from tests.docker.stack import COMPOSE, FOLDER, SERVICES, environment, image_environment

OURS = {f"DIFFUSION_{field.upper()}" for field in Environment.model_fields}
# And those that Prefect puts into the deployments.
DIFFUSION = OURS | set(re.findall(r"\{\{ \$(\w+) \}\}", Path("prefect.yaml").read_text()))
PREFECT = _get_valid_setting_names(Settings)
MLFLOW = {getattr(value, "name", None) for value in vars(mlflow.environment_variables).values()} - {None}
DVC = {value for name, value in vars(dvc.env).items() if name.startswith("DVC_")}
BOTO = {
    name
    for _, names, *_ in botocore.configprovider.BOTOCORE_DEFAUT_SESSION_VARIABLES.values()
    for name in ([names] if isinstance(names, str) else names or [])
} | {
    botocore.credentials.EnvProvider.ACCESS_KEY,
    botocore.credentials.EnvProvider.SECRET_KEY,
    "AWS_ENDPOINT_URL_S3",
}
# libpq's, Python's, the shell's, NVIDIA's container toolkit's, and what many programs take for "tell nobody".
OTHERS = {
    "PGHOST",
    "PGPORT",
    "PGUSER",
    "PGPASSWORD",
    "PYTHONUNBUFFERED",
    "PATH",
    "TMPDIR",
    "NVIDIA_DRIVER_CAPABILITIES",
    "DO_NOT_TRACK",
}
PYTHON = DIFFUSION | PREFECT | MLFLOW | DVC | BOTO | OTHERS
POSTGRES_IMAGE = {"POSTGRES_PASSWORD", "POSTGRES_INITDB_ARGS"}


def script(name):
    """Return the variables that one of our scripts reads."""
    text = (FOLDER / name).read_text()
    return set(re.findall(r"(?:\$\{?|\\getenv \w+ )([A-Z]\w+)", text))


def known(service):
    """Return the variables that something in a service's container reads."""
    special = {
        "guard": set(SERVICES["guard"]["command"]),
        "postgres": POSTGRES_IMAGE | script("databases.sh"),
        "store": script("store.sh"),
    }
    return special.get(service, PYTHON)


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_a_service_is_given_no_variable_that_nobody_reads(service):
    assert set(environment(service)) - known(service) == set()


@pytest.mark.parametrize("dockerfile", ["server.Dockerfile", "train.Dockerfile"])
def test_an_image_sets_no_variable_that_nobody_reads(dockerfile):
    variables = set(image_environment(dockerfile))
    assert variables
    assert variables - PYTHON == set()


@pytest.mark.parametrize(
    "misspelled",
    [
        "PREFECT_SERVER_API_AUTH_STRINGS",
        "PREFECT_API_ULR",
        "DIFFUSION_S3_ENDPOINTS",
        "MLFLOW_S3_ENDPOINT",
        "AWS_REGIONS",
    ],
)
def test_a_misspelled_variable_would_be_seen(misspelled):
    assert misspelled not in PYTHON


def test_the_scripts_are_given_all_that_they_read():
    assert len(script("databases.sh")) == 3
    assert script("databases.sh") <= set(environment("postgres"))
    assert script("store.sh") == set(environment("store"))


def test_mounted_secrets_are_called_like_variables_of_ours():
    assert {name.upper() for name in COMPOSE["secrets"]} <= OURS
    assert set(SERVICES["worker"]["secrets"]) == set(COMPOSE["secrets"])
    # A variable would be taken before the file.
    assert not set(environment("worker")) & {name.upper() for name in COMPOSE["secrets"]}


def test_the_workers_variables_are_values_that_our_settings_take(monkeypatch):
    variables = {**image_environment("train.Dockerfile"), **environment("worker")}
    for name in OURS & set(variables):
        monkeypatch.setenv(name, variables[name])
    settings = Environment()
    bucket = settings.dvc_remote.removeprefix("s3://").partition("/")[0]
    assert bucket in SERVICES["buckets"]["command"]
    (volume,) = (Path(volume.partition(":")[2]) for volume in SERVICES["worker"]["volumes"])
    assert volume in settings.checkpoints.parents
    assert volume in settings.dvc_cache.parents
    assert volume in settings.downloads.parents
