"""A stack is stopped and started: what is in the way is told, and nothing of before is lost."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import httpx
import psutil
import psycopg2
import pytest

from stack.home import HOST, keep_home, new_passwords, open_home
from stack.postgres import psql
from stack.processes import read_started
from tests.flows.repository import CHECKOUT, ran, write_repository
from tests.registry.projects import write_project as write_published
from tests.stack.project import python, until, variables, write_project


@pytest.fixture(scope="module")
def other_place(place):
    """The folder of a second project, whose stack is stopped and started at will."""
    folder = place / "other"
    write_project(folder)
    yield folder
    subprocess.run([sys.executable, "-m", "stack", "down"], cwd=folder, check=True)


def up(folder):
    done = subprocess.run(
        [sys.executable, "-m", "stack", "up"], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def stop_database(folder):
    started = read_started(folder / ".stack/started.json")
    started["postgres"].stop()


def test_a_file_that_is_in_the_way_is_told(other_place):
    (other_place / ".stack").mkdir()
    (other_place / ".stack/s3").write_text("where the buckets should be")
    code, _, message = up(other_place)
    assert code == 2
    assert (
        message == f"error: the disk refuses {other_place}/.stack/s3/images (Not a directory): correct or remove it\n"
    )
    (other_place / ".stack/s3").unlink()


def test_if_the_last_server_cannot_start_those_before_it_are_stopped(other_place):
    (other_place / ".git").rename(other_place / "away")
    try:
        code, output, message = up(other_place)
    finally:
        (other_place / "away").rename(other_place / ".git")
    assert code == 2
    assert "prefect answers" in output
    assert message == f"error: {other_place} is not a git repository, which runs need: `git init`, and commit\n"
    assert json.loads((other_place / ".stack/started.json").read_text()) == []
    home = open_home(other_place / ".stack")
    for port in home.ports.values():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port)).close()


def test_down_stops_exactly_what_up_has_started_and_the_data_outlast_it(other_place):
    code, _, message = up(other_place)
    assert code == 0, message
    home = open_home(other_place / ".stack")
    mlflow = httpx.Client(
        base_url=f"http://{HOST}:{home.ports['mlflow']}/api/2.0/mlflow", auth=("admin", home.passwords["mlflow"])
    )
    mlflow.post("/experiments/create", json={"name": "kept"}).raise_for_status()
    family = [
        member
        for each in read_started(other_place / ".stack/started.json").values()
        for member in [psutil.Process(each.pid), *psutil.Process(each.pid).children(recursive=True)]
    ]
    with socket.socket() as foreign:
        foreign.bind((HOST, 0))
        foreign.listen()
        done = python(other_place, "stack", "down")
        assert done.stdout.startswith("stopped: worker")
        assert not [each for each in family if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
        # A port that somebody took in the meantime is left to them.
        foreign.close()
    with socket.create_server((HOST, home.ports["s3"])):
        assert up(other_place)[0] == 0
    again = open_home(other_place / ".stack")
    assert again.passwords == home.passwords
    assert again.ports["s3"] != home.ports["s3"]
    assert {name: port for name, port in again.ports.items() if name != "s3"} == {
        name: port for name, port in home.ports.items() if name != "s3"
    }
    assert mlflow.get("/experiments/get-by-name?experiment_name=kept").status_code == 200


def test_new_passwords_replace_all_old_ones_and_nothing_is_lost(other_place):
    assert up(other_place)[0] == 0
    old = open_home(other_place / ".stack")
    done = python(other_place, "stack", "renew-passwords")
    assert done.returncode == 0, done.stderr
    new = open_home(other_place / ".stack")
    assert not set(old.passwords.values()) & set(new.passwords.values())
    assert new.ports == old.ports

    def codes(home):
        mlflow = f"http://{HOST}:{home.ports['mlflow']}/api/2.0/mlflow/experiments/get-by-name?experiment_name=kept"
        return [
            httpx.get(mlflow, auth=("admin", home.passwords["mlflow"])).status_code,
            httpx.get(home.prefect_api + "/admin/version", auth=("admin", home.passwords["prefect"])).status_code,
        ]

    assert codes(new) == [200, 200]
    assert codes(old) == [401, 401]
    login = {"host": HOST, "port": new.ports["postgres"], "user": "admin", "dbname": "prefect"}
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(**login, password=old.passwords["postgres"])
    assert python(other_place, "diffusion_core", "remote").returncode == 0
    refused = python(
        other_place,
        "diffusion_core",
        "remote",
        env=variables(other_place, DIFFUSION_S3_SECRET_KEY=old.passwords["s3"]),
    )
    assert refused.returncode == 2
    assert "DIFFUSION_S3_SECRET_KEY" in refused.stderr


def test_a_port_that_is_taken_while_others_look_there_is_told(other_place):
    assert up(other_place)[0] == 0
    home = open_home(other_place / ".stack")
    before = read_started(other_place / ".stack/started.json")
    before["s3"].stop()
    with socket.create_server((HOST, home.ports["s3"])):
        code, _, message = up(other_place)
    assert code == 2
    assert message.startswith(f"error: port {home.ports['s3']} of s3 has been taken by another program")
    # The others, and their addresses, are as they were.
    assert open_home(other_place / ".stack") == home
    assert set(read_started(other_place / ".stack/started.json")) == set(before) - {"s3"}


def test_a_renewal_that_was_broken_off_goes_on(other_place):
    assert up(other_place)[0] == 0
    old = open_home(other_place / ".stack")
    half = replace(old, next_passwords=new_passwords())
    keep_home(half)
    psql(old, f"ALTER ROLE admin PASSWORD '{half.next_passwords['postgres']}'")
    done = python(other_place, "stack", "renew-passwords")
    assert done.returncode == 0, done.stderr
    new = open_home(other_place / ".stack")
    assert new.passwords == half.next_passwords
    assert new.next_passwords == {}


def test_what_a_killed_worker_has_left_is_ended_by_down_and_cleared_away_by_up(other_place):
    assert up(other_place)[0] == 0
    runs = other_place / ".stack/runs"
    (runs / "checkout").mkdir()
    (runs / "stray").touch()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"], cwd=runs / "checkout") as orphan:
        read_started(other_place / ".stack/started.json")["worker"].stop()
        assert up(other_place)[0] == 0
        # While somebody works there, it stays.
        assert (runs / "checkout").exists()
        assert not (runs / "stray").exists()
        assert python(other_place, "stack", "down").returncode == 0
        assert orphan.wait(10) == -signal.SIGTERM
    assert up(other_place)[0] == 0
    assert not (runs / "checkout").exists()


def test_files_that_are_damaged_are_told(other_place, tmp_path):
    folder = tmp_path / ".stack"
    folder.mkdir()
    for name in ("started.json", "home.json"):
        (folder / name).write_text("[{")
        for command in ("up", "down") if name == "started.json" else ("up",):
            done = python(tmp_path, "stack", command, env=dict(os.environ))
            assert (done.returncode, done.stderr.count("\n")) == (2, 1)
            assert f"{name} is damaged" in done.stderr
        (folder / name).unlink()


@pytest.fixture
def without_database(other_place):
    """The second project while its stack runs but for PostgreSQL, which comes back afterwards."""
    assert up(other_place)[0] == 0
    stop_database(other_place)
    yield other_place
    assert up(other_place)[0] == 0


def quick(folder):
    """Variables of a shell whose Prefect does not try again for minutes."""
    return variables(folder, PREFECT_CLIENT_MAX_RETRIES="1", MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")


def assert_one_sentence(done, *words):
    assert done.returncode in (2, 75)
    assert "Traceback" not in done.stderr
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("error: ")
    for word in words:
        assert word in sentence


def test_without_its_database_prefect_is_told_to_be_unusable(without_database):
    for module in ("flows.deploy", "flows.pipeline"):
        done = python(without_database, module, env=quick(without_database))
        assert_one_sentence(done, "the Prefect server at http://127.0.0.1", "PREFECT_API_URL")


def test_without_its_database_mlflow_is_told_to_be_unusable_and_may_be_tried_again(without_database, tmp_path):
    write_published(tmp_path)
    shutil.copy(CHECKOUT / "params.yaml", tmp_path)
    done = python(tmp_path, "diffusion_core", "publish", env=quick(without_database))
    assert done.returncode == 75
    assert_one_sentence(done, "the tracking store http://127.0.0.1", "DIFFUSION_TRACKING_URI")


def test_a_run_whose_database_goes_in_the_middle_ends_with_a_sentence_and_the_next_one_goes_on(other_place, tmp_path):
    assert up(other_place)[0] == 0
    project = tmp_path / "project"
    write_repository(project)
    (project / "on_prepare.py").write_text(WAITS)
    word = open_home(other_place / ".stack").passwords["prefect"]
    api = variables(other_place)["PREFECT_API_URL"].replace("//", f"//admin:{word}@")
    known = quick(other_place) | {"DIFFUSION_DVC_REMOTE": "", "PREFECT_API_URL": api}
    run = subprocess.Popen(
        [sys.executable, "-m", "flows.pipeline"],
        cwd=project,
        env={**known, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until((project / "waits").exists, 60, "the stage did not start")
        stop_database(other_place)
    finally:
        (project / "go").touch()
        _, message = run.communicate(timeout=120)
    assert run.returncode == 2, message
    # Prefect tells of lines of its log that it could not send, before and after.
    assert message.count("\nerror: the Prefect server stopped answering") == 1
    assert "Traceback" not in message
    assert word not in message
    assert up(other_place)[0] == 0
    ran(project)
    again = python(project, "flows.pipeline", env=quick(other_place) | {"DIFFUSION_DVC_REMOTE": ""})
    assert again.returncode == 0, again.stderr
    stages = [stage for stage, _ in ran(project)]
    assert stages[-1] == "report"
    assert "prepare" not in stages


WAITS = """
import pathlib, time
pathlib.Path("waits").touch()
while not pathlib.Path("go").exists():
    time.sleep(0.1)
"""
