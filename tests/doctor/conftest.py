"""A new folder as the current one, and servers."""

import os
import subprocess
import sys

import pytest

from tests.ports import free_port
from tests.registry.conftest import silent_port
from tests.storage.conftest import RCLONE, admin, server

__all__ = ["admin", "server", "silent_port"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The current folder, without the developer's accounts and servers."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "PREFECT_", "GIT_")):
            monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture(scope="package")
def locked_server(tmp_path_factory):
    """The port of a server that asks for the login admin, password `right`, for the pages that doctor asks for."""
    pages, port = tmp_path_factory.mktemp("pages"), free_port()
    for page in ("api/2.0/mlflow/experiments/search", "api/admin/version"):
        (pages / page).parent.mkdir(parents=True)
        (pages / page).write_text("{}")
    environment = {
        "PATH": os.environ["PATH"],
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_USER": "admin",
        "RCLONE_PASS": "right",
    }
    command = [RCLONE, "serve", "http", "--addr", f"127.0.0.1:{port}", pages]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert any("Server started" in line for line in process.stderr)
            yield port
        finally:
            process.terminate()


@pytest.fixture
def sleeping():
    """A process that is not of this project."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.communicate(b"\n")
