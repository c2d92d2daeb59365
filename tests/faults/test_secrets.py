"""No secret of the environment is printed, or kept in any file, whether a command succeeds or fails."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler

import pytest

from diffusion_core.__main__ import main
from tests.faults.commands import run
from tests.registry.projects import write_project
from tests.registry.servers import serving

CANARY = "canary-5f1d"
CLOSED = "127.0.0.1:9"
LOGIN = f"someone:{CANARY}-userinfo"

SECRETS = {
    name: f"{CANARY}-{name.lower().replace('_', '-')}"
    for name in (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
        *("DIFFUSION_S3_ACCESS_KEY", "DIFFUSION_S3_SECRET_KEY"),
        *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_FLASK_SERVER_SECRET_KEY"),
        *("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "PREFECT_SERVER_DATABASE_PASSWORD"),
        *("PGPASSWORD", "POSTGRES_PASSWORD", "RCLONE_AUTH_KEY"),
    )
} | {"DIFFUSION_TRACKING_PAGE": f"http://{LOGIN}@pages.example"}


def leaks(folder):
    """Return the files of a folder that have a canary in them or in their name; git keeps its remote's address."""
    files = (file for file in folder.rglob("*") if file.is_file() and ".git" not in file.parts)
    return [
        str(file.relative_to(folder)) for file in files if CANARY.encode() in file.read_bytes() or CANARY in file.name
    ]


def says_nothing(done):
    assert CANARY not in done.stdout + done.stderr, done.stdout + done.stderr


@pytest.fixture
def folder(digits, tmp_path):
    """A project in a git repository whose remote has a login."""
    folder = tmp_path / "project"
    shutil.copytree(digits, folder)
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (
        ["init", "--quiet"],
        ["add", "params.yaml"],
        ["commit", "--quiet", "--message", "a"],
        ["remote", "add", "origin", f"https://{LOGIN}@git.example/a.git"],
    ):
        subprocess.run([*git, *arguments], check=True, capture_output=True)
    return folder


def test_a_training_whose_server_is_away_shows_and_keeps_none(folder):
    address = f"http://{LOGIN}@{CLOSED}/mlflow?token={CANARY}"
    done = run(folder, "train", DIFFUSION_TRACKING_URI=address, **SECRETS)
    assert done.returncode == 0, done.stderr
    assert f"http://{CLOSED}/mlflow" in done.stderr
    says_nothing(done)
    assert list((folder / ".checkpoints").glob("*/outbox/entries.jsonl"))
    assert (folder / "models/model.json").exists()
    assert leaks(folder) == []


def test_a_store_keeps_none_of_what_a_training_and_a_publication_say(folder):
    done = run(folder, "train", **SECRETS)
    assert done.returncode == 0, done.stderr
    says_nothing(done)
    write_project(folder)
    done = run(folder, "publish", **SECRETS)
    assert done.returncode == 0, done.stderr
    says_nothing(done)
    assert "http://pages.example/#/experiments" in done.stdout
    assert {"mlflow.db", "mlartifacts", ".cache"} <= {each.name for each in folder.iterdir()}
    assert leaks(folder) == []


def test_what_is_planted_is_found(folder):
    """The control."""
    (folder / "mlartifacts").mkdir()
    (folder / "mlartifacts/a.txt").write_text(SECRETS["PGPASSWORD"], encoding="utf-8")
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute("INSERT INTO experiment_tags VALUES ('a', ?, 0)", (SECRETS["AWS_SESSION_TOKEN"],))
    assert leaks(folder) == ["mlflow.db", "mlartifacts/a.txt"]


class _Refuses(BaseHTTPRequestHandler):
    """A server that answers with what it was sent, as a proxy's page of errors may."""

    status = 403

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b"<html>refused</html>")

    do_POST = do_PUT = do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


class _Fails(_Refuses):
    status = 500


@contextmanager
def closed():
    yield CLOSED


@contextmanager
def answering(handler):
    with serving(handler) as server:
        yield f"127.0.0.1:{server.server_port}"


@contextmanager
def hanging():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


SERVERS = {
    "closed": closed,
    "refuses": lambda: answering(_Refuses),
    "fails": lambda: answering(_Fails),
    "hangs": hanging,
}


@pytest.fixture
def fails(monkeypatch, capfd):
    """Return a function that runs a command that must fail, and returns what it has said."""

    def command(folder, *arguments, **variables):
        monkeypatch.chdir(folder)
        for name, value in (SECRETS | variables).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["diffusion", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        said = "".join(capfd.readouterr())
        assert left.value.code in (2, 75), said
        assert "error: " in said
        return said

    return command


@pytest.mark.parametrize("server", SERVERS)
def test_a_store_of_models_that_fails_is_named_without_its_login(folder, monkeypatch, fails, server):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    write_project(folder)
    with SERVERS[server]() as address:
        said = fails(folder, "publish", DIFFUSION_TRACKING_URI=f"http://{LOGIN}@{address}/?token={CANARY}")
    assert address in said
    assert CANARY not in said
    assert leaks(folder) == []


@pytest.mark.parametrize("server", ["closed", "refuses", "fails"])
def test_a_store_of_images_that_fails_is_named_without_its_keys(folder, fails, server):
    (folder / "pictures").mkdir()
    (folder / "pictures/a.png").write_bytes(b"a")
    with SERVERS[server]() as address:
        said = fails(folder, "upload", "pictures", "s3://bucket/pictures", DIFFUSION_S3_ENDPOINT=f"http://{address}")
    assert CANARY not in said
    assert leaks(folder) == []


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["upload", "data", f"s3://{LOGIN}@bucket/a"], {}),
        (["upload", "data", "s3://bucket/a"], {"DIFFUSION_S3_ENDPOINT": f"http://{LOGIN}@{CLOSED}"}),
        (["remote"], {"DIFFUSION_DVC_REMOTE": f"s3://{LOGIN}@bucket/a"}),
        (["publish"], {"DIFFUSION_TRACKING_URI": f"postgresql://{LOGIN}@{CLOSED}/a"}),
        (["publish"], {"DIFFUSION_TRACKING_URI": f"gopher://{LOGIN}@{CLOSED}"}),
        (["publish"], {"DIFFUSION_S3_SECRT_KEY": CANARY}),
        (["train"], {"DIFFUSION_PROCESSES": "none"}),
    ],
    ids=str,
)
def test_a_mistake_is_named_without_a_secret(folder, fails, arguments, variables):
    write_project(folder)
    assert CANARY not in fails(folder, *arguments, **variables)
    assert leaks(folder) == []


def test_an_error_that_is_no_mistake_of_the_user_shows_none_either(folder):
    """A traceback has lines of code, and no values but those of messages."""
    program = (
        "import sys\nfrom diffusion_core import __main__ as command\n"
        "from diffusion_core.training.trainer import Trainer\n"
        "def fail(self):\n    raise AssertionError('planted')\n"
        "Trainer.tensors = fail\nsys.argv = ['diffusion', 'train']\ncommand.main()\n"
    )
    variables = {"DIFFUSION_DEVICE": "cpu", "DIFFUSION_TRACKING_URI": f"http://{LOGIN}@{CLOSED}"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, **SECRETS, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "AssertionError: planted" in done.stderr
    says_nothing(done)
    assert leaks(folder) == []
