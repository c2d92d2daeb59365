"""A stack that runs: who may speak to its servers, and what its commands say."""

import httpx
import psutil
import psycopg2
import pytest
from dotenv import dotenv_values
from filelock import FileLock

from stack.home import HOST, keep_home, open_home
from stack.processes import read_started
from stack.services import worker
from tests.stack.project import python


@pytest.fixture
def home(stack):
    return open_home(stack / ".stack")


def test_what_outlives_a_run_lies_in_the_stacks_own_folder_and_is_not_for_people(tmp_path):
    home = open_home(tmp_path / "stack")
    names = {
        "DIFFUSION_CHECKPOINTS": "checkpoints",
        "DIFFUSION_COMPILE_CACHE": "compiled",
        "DIFFUSION_DOWNLOADS": "downloads",
        "DIFFUSION_DVC_CACHE": "cache",
    }
    environment = worker(home).environment
    assert {name: environment[name] for name in names} == {
        name: str(tmp_path / "stack" / folder) for name, folder in names.items()
    }
    # A shell's `clean` and `replay` look at the worker's folders; compiled code is the worker's alone.
    keep_home(home)
    shell = dotenv_values(home.folder / "env")
    del names["DIFFUSION_COMPILE_CACHE"]
    assert {name: environment[name] for name in names}.items() <= shell.items()
    assert "DIFFUSION_COMPILE_CACHE" not in shell


@pytest.mark.parametrize(
    "path",
    [
        "/api/2.0/mlflow/experiments/search?max_results=1",
        "/ajax-api/2.0/mlflow/experiments/search?max_results=1",
        "/api/2.0/mlflow-artifacts/artifacts",
        "/api/2.0/mlflow-artifacts/artifacts/..%2f..%2fhome.json",
        "/get-artifact?run_id=1&path=..%2f..%2fhome.json",
        "/graphql",
    ],
)
def test_mlflow_tells_nothing_to_whom_it_does_not_know(home, path):
    address = f"http://{HOST}:{home.ports['mlflow']}{path}"
    assert httpx.get(address).status_code in (401, 403, 405)
    assert httpx.get(address, auth=("admin", "wrong")).status_code in (401, 403, 405)


def test_mlflow_answers_whom_it_knows(home):
    address = f"http://{HOST}:{home.ports['mlflow']}/api/2.0/mlflow/experiments/search?max_results=1"
    assert httpx.get(address, auth=("admin", home.passwords["mlflow"])).status_code == 200


def test_prefect_answers_whom_it_knows_and_nobody_else(home):
    address = home.prefect_api + "/flows/filter"
    assert httpx.post(address, json={}).status_code == 401
    assert httpx.post(address, json={}, auth=("admin", "wrong")).status_code == 401
    assert httpx.post(address, json={}, auth=("admin", home.passwords["prefect"])).status_code == 200


def test_prefects_pages_look_for_the_api_where_it_is(home):
    assert httpx.get(home.prefect_api.removesuffix("/api") + "/ui-settings").json()["api_url"] == home.prefect_api


def test_the_store_answers_no_unsigned_request(home):
    # That it answers a signed one, the images show that lie in it.
    assert httpx.get(home.s3_endpoint + "/dvc").status_code in (400, 403)


def test_the_database_asks_for_its_password(home):
    login = {"host": HOST, "port": home.ports["postgres"], "user": "admin", "dbname": "prefect"}
    psycopg2.connect(**login, password=home.passwords["postgres"]).close()
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        psycopg2.connect(**login, password="wrong")


def test_nobody_listens_beyond_this_machine(stack):
    for each in read_started(stack / ".stack/started.json").values():
        process = psutil.Process(each.pid)
        for member in [process, *process.children(recursive=True)]:
            listening = [each for each in member.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
            assert {each.laddr.ip for each in listening} <= {HOST}


def test_a_second_start_finds_everything_running_and_starts_nothing(stack):
    file = stack / ".stack/started.json"
    before = file.read_text()
    done = python(stack, "stack", "up")
    assert done.returncode == 0, done.stderr
    assert "answers" not in done.stdout
    assert file.read_text() == before
    assert home_lines(done.stdout)


def home_lines(output):
    return [line for line in output.splitlines() if "http://127.0.0.1:" in line]


def test_two_commands_at_once_are_refused(stack):
    with FileLock(stack / ".stack/lock"):
        done = python(stack, "stack", "up")
    assert done.returncode == 2
    assert done.stderr == "error: another `make stack` or `make stack-down` is at work here: wait until it ends\n"


def test_a_command_that_is_none_is_told(stack):
    done = python(stack, "stack", "sideways")
    assert done.returncode == 2
    assert "invalid choice: 'sideways'" in done.stderr.splitlines()[-1]
