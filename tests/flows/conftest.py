import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_API_URL
from prefect.testing.utilities import prefect_test_harness
from sqlalchemy import make_url

from flows.automations import AUTOMATIONS
from flows.pipeline import pipeline
from tests.flows.repository import ran, write_repository
from tests.stages.conftest import digits

__all__ = ["digits"]


@pytest.fixture(scope="package")
def prefect_server():
    """A Prefect server with a database of its own."""
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def clean_server(prefect_server, monkeypatch):
    """A client of the server, which processes find too, and on which nothing is left that the test deploys."""
    monkeypatch.setenv("PREFECT_API_URL", PREFECT_API_URL.value())
    with get_client(sync_client=True) as client:
        yield client
        for deployment in client.read_deployments():
            client.delete_deployment(deployment.id)
        for pool in client.read_work_pools():
            client.delete_work_pool(pool.name)
        for automation in AUTOMATIONS:
            for there in client.read_automations_by_name(automation.name):
                client.delete_automation(there.id)


@pytest.fixture
def users_prefect(prefect_server):
    """Variables of a user who has a Prefect server at an address with a password in it."""
    return os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value().replace("//", "//somebody:secret@")}


@pytest.fixture
def server_variables(prefect_server, tmp_path):
    """Variables for a second Prefect server: a copy of the database, whose migration takes long."""
    database = make_url(PREFECT_API_DATABASE_CONNECTION_URL.value())
    copy = tmp_path / "prefect.db"
    with closing(sqlite3.connect(database.database)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    return os.environ | {
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{copy}",
        "PREFECT_HOME": str(tmp_path / ".prefect"),
    }


@pytest.fixture(scope="package")
def new_project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("new") / "project"
    write_repository(folder)
    return folder


@pytest.fixture(scope="package")
def finished_project(new_project, tmp_path_factory, prefect_server):
    """A project after its first run, the id of that run, and the stages with their flow run as they ran."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    shutil.copytree(new_project, folder)
    here = Path.cwd()
    os.chdir(folder)
    try:
        state = pipeline(return_state=True)
    finally:
        os.chdir(here)
    assert state.is_completed(), state.message
    return folder, state.state_details.flow_run_id, ran(folder)


def _enter(project, tmp_path, monkeypatch):
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def project(new_project, tmp_path, monkeypatch):
    """A project in the current folder, in which nothing has run."""
    return _enter(new_project, tmp_path, monkeypatch)


@pytest.fixture
def project_after_a_run(finished_project, tmp_path, monkeypatch):
    """A project in the current folder, in which everything has run."""
    return _enter(finished_project[0], tmp_path, monkeypatch)
