"""The servers as compose.yaml starts them, as processes: who has no password gets nothing."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.server.api.server import create_api_app
from starlette.routing import WebSocketRoute

from tests.docker.calls import MLFLOW, PREFECT, ask, every_route, lets_in, status
from tests.docker.programs import DEPLOY, MLFLOW_ROUTES, WORKS
from tests.docker.stack import BIN, GOOD, answers, family, started, words
from tests.ports import free_port

REFUSED = (401, 403)


@pytest.fixture(scope="module")
def stack():
    with started() as running:
        yield running


def test_prefect_answers_to_its_password_alone(stack):
    page = stack.page("prefect-server")
    filters = {"method": "POST", "body": "{}"}
    assert status(page, "/api/flows/filter", login=PREFECT, **filters) == 200
    assert status(page, "/api/flows/filter", **filters) == 401
    assert status(page, "/api/flows/filter", login=("admin", "another-password"), **filters) == 401
    assert status(page, "/api/flows/filter", login=("admin", ""), **filters) == 401


def test_of_prefects_routes_only_the_probes_are_open(stack):
    page = stack.page("prefect-server")
    routes = json.loads(ask(page, "/api/openapi.json", login=PREFECT)[1])["paths"]
    calls = {
        (method.upper(), "/api" + path.replace("{", "").replace("}", ""))
        for path, methods in routes.items()
        for method in methods
    }
    assert len(calls) > 150
    assert {call for call in calls if status(page, call[1], call[0]) != 401} == {
        ("GET", "/api/health"),
        ("GET", "/api/ready"),
    }


def test_of_prefects_pages_those_are_open_that_hold_no_data(stack):
    page = stack.page("prefect-server")
    pages = ["/", "/docs", "/redoc", "/openapi.json", "/ui-settings", "/api/docs", "/api/", "/api/openapi.json"]
    # The program of the pages, the API's description, and where it is; the pages ask for the password.
    assert {path for path in pages if status(page, path) == 200} == {
        "/",
        "/docs",
        "/redoc",
        "/openapi.json",
        "/ui-settings",
    }


@pytest.mark.parametrize(
    "path",
    [
        "/api/health/../admin/version",
        "/api/health/..%2fadmin%2fversion",
        "/api/..%2fapi/admin/version",
        "/api//admin/version",
        "/api/admin/version/health",
        "/api/admin/version?/health",
        "/api/variables/name/health",
    ],
)
def test_no_spelling_of_a_path_leads_into_prefect(stack, path):
    page = stack.page("prefect-server")
    assert status(page, path) == 401
    assert status(page, path, headers={"Host": "x/api/health?"}) in (400, 401)


def test_prefects_sockets_close_on_who_has_no_password(stack):
    paths = {route.path for route in every_route(create_api_app()) if isinstance(route, WebSocketRoute)}
    assert {"/events/in", "/events/out", "/logs/out"} < paths
    for path in paths:
        address = stack.page("prefect-server").replace("http", "ws") + "/api" + path.replace("{", "").replace("}", "")
        for token in ("another:password", None):
            assert not lets_in(address, token), path
    assert lets_in(stack.page("prefect-server").replace("http", "ws") + "/api/events/in", ":".join(PREFECT))


@pytest.fixture(scope="module")
def worked(stack, tmp_path_factory):
    """A folder where the image's worker has run a flow until the worker was told to stop, as `docker stop` does."""
    folder = tmp_path_factory.mktemp("works")
    (folder / "works.py").write_text(WORKS)
    port = free_port()
    variables = stack.environment("worker", "train.Dockerfile") | {
        "PREFECT_WORKER_WEBSERVER_PORT": str(port),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PYTHONPATH": str(Path.cwd()),
    }
    _, *arguments = words("train.Dockerfile")
    stack.launch("worker", [sys.executable, *arguments], env=variables)
    stack.wait("worker", lambda: answers(f"http://127.0.0.1:{port}/health"))
    page = stack.page("prefect-server")
    stack.wait("worker", lambda: status(page, "/api/work_pools/machine", login=PREFECT) == 200)
    subprocess.run([sys.executable, "-c", DEPLOY, folder], env=variables, capture_output=True, check=True)
    stack.wait("worker", (folder / "training").exists)
    stack.processes["worker"].terminate()
    stack.processes["worker"].wait(40)
    return folder


def test_a_training_saves_its_work_when_its_container_is_stopped(stack, worked):
    assert (worked / "checkpoint").exists()
    runs = json.loads(ask(stack.page("prefect-server"), "/api/flow_runs/filter", "POST", PREFECT, "{}")[1])
    # It says that it ended, so that nobody takes it for running and waits for it.
    assert [run["state_type"] for run in runs] == ["CRASHED"]


def test_a_run_leaves_its_tasks_and_events_behind(stack, worked):
    """As it would not if Prefect's services were another process, without a broker between the two."""
    page = stack.page("prefect-server")

    def recorded():
        tasks = ask(page, "/api/task_runs/count", "POST", PREFECT, "{}")[1]
        events = json.loads(ask(page, "/api/events/filter", "POST", PREFECT, "{}")[1])["total"]
        return int(tasks) == 1 and events > 0

    deadline = time.monotonic() + 20
    while not recorded():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_the_workers_login_opens_mlflow(stack, tmp_path):
    code = """
from diffusion_core.config.environment import load_environment
from diffusion_core.registry.connection import connect
print(len(connect(load_environment()).search_experiments()))
"""
    variables = stack.environment("worker", "train.Dockerfile") | {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "1\n", done.stderr


def test_mlflow_answers_to_its_password_alone(stack):
    page = stack.page("mlflow")
    path = "/api/2.0/mlflow/experiments/search?max_results=1"
    assert status(page, path, login=MLFLOW) == 200
    assert status(page, path) == 401
    assert status(page, path, login=("admin", "another-password")) == 401
    # MLflow's password of old.
    assert status(page, path, login=("admin", "password1234")) == 401


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/version",
        "/signup",
        "/api/2.0/mlflow/experiments/search?max_results=1",
        "/ajax-api/2.0/mlflow/experiments/search?max_results=1",
        "/graphql",
        "/get-artifact?path=x&run_uuid=y",
        "/api/2.0/mlflow-artifacts/artifacts",
        "/api/2.0/mlflow-artifacts/artifacts/..%2f..%2fetc%2fpasswd",
        "/ajax-api/2.0/mlflow-artifacts/artifacts?path=..%2f",
        "/api/2.0/mlflow/users/list",
        "/api/2.0/..%2f2.0/mlflow/experiments/search?max_results=1",
        "//api/2.0/mlflow/experiments/search?max_results=1",
    ],
)
def test_mlflow_shows_nothing_without_a_password(stack, path):
    assert status(stack.page("mlflow"), path) in REFUSED


@pytest.mark.parametrize("open_path", ["/health", "/static-files", "/favicon.ico"])
@pytest.mark.parametrize("back", ["/../", "/..%2f", "/%2e%2e/", "/..%2f..%2f", "%2f..%2f", "/..;/"])
def test_no_way_leads_back_from_mlflows_open_paths(stack, open_path, back):
    page = stack.page("mlflow")
    secret = ask(page, "/api/2.0/mlflow/experiments/search?max_results=1", login=MLFLOW)[1]
    code, content = ask(page, f"{open_path}{back}api/2.0/mlflow/experiments/search?max_results=1")
    assert b"experiment_id" in secret
    assert code in (*REFUSED, 404)
    assert b"experiment_id" not in content


def test_of_mlflows_routes_exactly_those_are_open_that_hold_no_data(stack):
    variables = stack.environment("mlflow")
    found = subprocess.run([sys.executable, "-c", MLFLOW_ROUTES], env=variables, capture_output=True, check=True).stdout
    page = stack.page("mlflow")
    calls = {(method, re.sub(r"[<{][^>}]*[>}]", "1", path)) for method, path in json.loads(found)}
    assert len(calls) > 200
    opened = {call for call in calls if status(page, call[1], call[0]) not in REFUSED}
    # Whether it lives, its program, and what it is able to do.
    assert {path for _, path in opened} == {
        "/health",
        "/static-files/1",
        "/api/3.0/mlflow/server-info",
        "/ajax-api/3.0/mlflow/server-info",
    }


def test_mlflow_is_not_reached_under_another_name(stack):
    path = "/api/2.0/mlflow/experiments/search?max_results=1"
    assert status(stack.page("mlflow"), path, login=MLFLOW, headers={"Host": "elsewhere.example"}) == 403
    assert status(stack.page("mlflow"), path, login=MLFLOW, headers={"Host": "mlflow:5000"}) == 200


def test_artifacts_go_through_mlflow_into_the_store(stack):
    page = stack.page("mlflow")
    path = "/api/2.0/mlflow-artifacts/artifacts/some/words.txt"
    assert status(page, path, "PUT", body=b"words") in REFUSED
    assert status(page, path, "PUT", MLFLOW, b"words") == 200
    assert (stack.folder / "objects/mlflow/some/words.txt").read_bytes() == b"words"
    assert ask(page, path, login=MLFLOW) == (200, b"words")


def test_the_buckets_are_there_and_making_them_again_does_no_harm(stack):
    assert {each.name for each in (stack.folder / "objects").iterdir()} == {"images", "dvc", "mlflow"}
    command, variables = stack.command("buckets"), stack.environment("buckets")
    subprocess.run(command, env=variables, check=True)
    wrong = {**variables, "AWS_SECRET_ACCESS_KEY": "another-password"}
    assert subprocess.run(command, env=wrong, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize(
    ("user", "password", "database", "opens"),
    [
        ("prefect", GOOD["PREFECT_DATABASE_PASSWORD"], "prefect", True),
        ("mlflow", GOOD["MLFLOW_DATABASE_PASSWORD"], "mlflow", True),
        ("mlflow", GOOD["MLFLOW_DATABASE_PASSWORD"], "mlflow_auth", True),
        ("mlflow", GOOD["MLFLOW_DATABASE_PASSWORD"], "prefect", False),
        ("prefect", GOOD["PREFECT_DATABASE_PASSWORD"], "mlflow_auth", False),
        ("prefect", "another-password", "prefect", False),
        ("postgres", "", "postgres", False),
    ],
)
def test_a_role_opens_its_own_databases_with_its_password(stack, user, password, database, opens):
    address = {"PGHOST": "127.0.0.1", "PGPORT": str(stack.ports["postgres"]), "PGUSER": user, "PGDATABASE": database}
    code = "import psycopg2; psycopg2.connect('')"
    variables = {**address, "PGPASSWORD": password, "PGPASSFILE": "/dev/null"}
    done = subprocess.run([BIN / "python", "-c", code], env=variables, capture_output=True, check=False)
    assert (done.returncode == 0) is opens, done.stderr


def test_no_argument_and_no_log_shows_a_secret(stack):
    processes = [each for child in stack.processes.values() if child.poll() is None for each in family(child.pid)]
    # The controls: the same search finds a secret where there is one.
    assert any(shows(" ".join(each.environ().values())) for each in processes)
    assert len(processes) > 4
    assert not any(shows(" ".join(each.cmdline())) for each in processes)
    logs = list(Path(stack.folder).glob("*.log"))
    assert len(logs) == len(stack.processes)
    assert not any(shows(log.read_text()) for log in logs)


def shows(text):
    return any(value in text for value in GOOD.values())
