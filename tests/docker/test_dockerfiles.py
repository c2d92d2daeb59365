"""What the Dockerfiles and the scripts beside them promise, without an engine."""

import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import click
import mlflow.cli
import mlflow.server.auth.cli
import pytest

from diffusion_core.supervision.child import GRACE_SECONDS
from diffusion_core.supervision.worker import STOP_SECONDS
from tests.docker.stack import BIN, FOLDER, GOOD, SERVICES, instructions, words

DOCKERFILES = ["server.Dockerfile", "train.Dockerfile"]
LOCK = dict(line.split(" ")[0].split("==") for line in Path("requirements.lock").read_text().splitlines())
PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_linter_has_nothing_to_say(name):
    done = subprocess.run([BIN / "hadolint", FOLDER / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", DOCKERFILES)
def test_a_rule_is_left_out_only_with_a_reason(name):
    lines = (FOLDER / name).read_text().splitlines()
    ignored = [number for number, line in enumerate(lines) if "hadolint" in line]
    assert all(lines[number - 1].startswith("# ") for number in ignored)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_start_from_one_pinned_python_and_end_as_nobody_special(name):
    bases = {rest.split(" AS ")[0] for word, rest in instructions(name) if word == "FROM"}
    (base,) = bases
    assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+", base)
    *_, user = (rest for word, rest in instructions(name) if word == "USER")
    assert int(user) > 999


@pytest.mark.parametrize("name", DOCKERFILES)
def test_whatever_is_installed_comes_in_the_versions_of_the_lock(name):
    runs = [rest for word, rest in instructions(name) if word == "RUN"]
    for install in (part for run in runs for part in run.split("&&") if "pip install" in part):
        assert re.search(r"--(build-)?constraint (/tmp/)?requirements\.lock", install), install


def test_the_server_has_what_compose_starts_and_no_torch():
    (install,) = (rest for word, rest in instructions("server.Dockerfile") if word == "RUN")
    packages = set(install.partition("--constraint")[2].partition("&&")[0].split()[1:])
    assert packages == {
        "asyncpg",
        "boto3",
        "fastapi",
        "flask-wtf",
        "mlflow",
        "prefect",
        "psycopg2-binary",
        "sqlalchemy",
    }
    assert packages <= set(LOCK)


def test_the_extras_of_the_training_image_exist():
    extras = re.findall(r"--extra (\S+)", (FOLDER / "train.Dockerfile").read_text())
    assert extras
    assert set(extras) <= set(PROJECT["optional-dependencies"])


def test_the_lock_leaves_cuda_to_pytorchs_wheel():
    # The image says that the wheel brings it.
    assert "torch" in LOCK
    assert not [name for name in LOCK if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert "+" not in LOCK["torch"]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_exists_and_reaches_the_builder(name):
    sent = [line[1:] for line in Path(".dockerignore").read_text().splitlines() if line.startswith("!")]
    for rest in (rest for word, rest in instructions(name) if word == "COPY" and "--from" not in rest):
        *sources, _ = (word for word in rest.split() if not word.startswith("--"))
        for source in sources:
            assert Path(source).exists()
            assert any(source == each or source.startswith(f"{each}/") for each in sent), source


def test_no_secret_and_no_data_reach_the_builder():
    lines = [line for line in Path(".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert lines.index("docker/.env") > lines.index("!docker")
    assert not {"!.env", "!.git", "!data", "!models"} & set(lines)


PREFECT_COMMANDS = {
    "worker": ["prefect", "worker", "start", *words("train.Dockerfile")[3:]],
    **{name: SERVICES[name]["command"] for name in ("prefect-database", "prefect-server")},
}


@pytest.mark.parametrize("name", sorted(PREFECT_COMMANDS))
def test_prefects_commands_and_their_options_exist(name):
    command = PREFECT_COMMANDS[name]
    first = next(number for number, word in enumerate(command) if word.startswith("--"))
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    done = subprocess.run(
        [BIN / command[0], *command[1:first], "--help"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for option in (word for word in command[first:] if word.startswith("--")):
        assert re.search(rf"(^|[\s/]){option}\b", done.stdout), option


@pytest.mark.parametrize(
    ("name", "commands", "words"),
    [
        ("mlflow", mlflow.cli.cli, 1),
        ("mlflow-database", mlflow.cli.cli, 1),
        ("mlflow-accounts", mlflow.server.auth.cli.commands, 3),
    ],
)
def test_mlflows_commands_and_their_options_exist(name, commands, words):
    rest = SERVICES[name]["command"][words:]
    command = commands
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), rest.pop(0))
    known = {option for parameter in command.params for option in parameter.opts}
    assert command.name in ("server", "upgrade")
    assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known


def test_the_worker_polls_the_pool_of_the_nightly_deployment():
    command = words("train.Dockerfile")
    pool = command[command.index("--pool") + 1]
    assert re.search(rf"^ *name: {pool}$", Path("prefect.yaml").read_text(), re.MULTILINE)


def test_who_is_stopped_has_longer_than_those_that_he_waits_for():
    assert SERVICES["worker"]["stop_grace_period"] == "1m"
    assert GRACE_SECONDS < STOP_SECONDS < 60


def test_scripts_can_be_run_and_stop_at_the_first_error():
    for script in FOLDER.glob("*.sh"):
        assert os.access(script, os.X_OK), script
        assert "\nset -eu\n" in script.read_text()
        subprocess.run(["sh", "-n", script], check=True)


WEED = """#!/bin/sh
cat /tmp/s3.json > "$SEEN/account"
echo "$@" > "$SEEN/arguments"
env > "$SEEN/environment"
"""


def test_the_store_knows_one_account_and_shows_it_to_nobody(tmp_path):
    keys = {name: GOOD[name] for name in ("S3_ACCESS_KEY", "S3_SECRET_KEY")}
    script = (FOLDER / "store.sh").read_text().replace("/tmp/s3.json", str(tmp_path / "s3.json"))
    # As the user that the image's root becomes.
    script = script.replace('"$(id -u)"', "10001")
    (tmp_path / "weed").write_text(WEED.replace("/tmp/s3.json", str(tmp_path / "s3.json")))
    (tmp_path / "weed").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SEEN": str(tmp_path), **keys}
    subprocess.run(["sh", "-c", script], env=environment, check=True)
    (identity,) = json.loads((tmp_path / "account").read_text())["identities"]
    assert identity["credentials"] == [{"accessKey": keys["S3_ACCESS_KEY"], "secretKey": keys["S3_SECRET_KEY"]}]
    assert (tmp_path / "s3.json").stat().st_mode & 0o077 == 0
    seen = (tmp_path / "arguments").read_text() + (tmp_path / "environment").read_text()
    assert not any(key in seen for key in keys.values())
    assert re.search(r"^WEED_JWT_FILER_SIGNING_KEY=[0-9a-f]{64}$", seen, re.MULTILINE)


def test_only_the_stores_s3_port_leaves_its_loopback():
    command = shlex.split((FOLDER / "store.sh").read_text().rpartition("exec weed ")[2].replace("\\\n", " "))
    options = dict(word.lstrip("-").split("=") for word in command if "=" in word)
    assert options["ip"] == options["ip.bind"] == "127.0.0.1"
    assert options["s3.ip.bind"] == "0.0.0.0"
    assert options["s3.iam"] == "false"
    assert options["s3.port.iceberg"] == options["s3.port.lance"] == "0"
