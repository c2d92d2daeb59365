"""What doctor finds at a Prefect server."""

import importlib.metadata
import os
import time
from datetime import UTC, datetime, timedelta

import pytest
from prefect import flow
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Running, Scheduled

from diffusion_core.config.environment import Environment
from diffusion_core.doctor import prefect_server
from diffusion_core.doctor.prefect_server import prefect_api
from tests.doctor.findings import is_silent, worst
from tests.ports import free_port

ENVIRONMENT = Environment()


@pytest.fixture
def client(clean_server):
    def end():
        for run in clean_server.read_flow_runs():
            clean_server.set_flow_run_state(run.id, Completed(), force=True)

    end()
    yield clean_server
    end()


@flow
def empty():
    pass


def test_runs_without_a_process_are_found_and_stay_as_they_are(client, monkeypatch):
    assert is_silent(prefect_api, ENVIRONMENT)
    run = client.create_flow_run(empty, name="silent")
    client.set_flow_run_state(run.id, Running(), force=True)
    assert is_silent(prefect_api, ENVIRONMENT)
    monkeypatch.setattr(prefect_server, "SILENCE_HOURS", 0.0)
    time.sleep(0.1)
    assert worst(prefect_api, ENVIRONMENT).sentence.startswith("the flow run silent is Running, and has logged nothing")
    assert client.read_flow_run(run.id).state.is_running()


def test_runs_of_a_pool_without_a_worker_are_found(client):
    client.create_work_pool(WorkPoolCreate(name="machine", type="process"))
    deployment = client.create_deployment(client.create_flow(empty), "nightly", work_pool_name="machine")
    run = client.create_flow_run_from_deployment(deployment, name="orphan")
    client.set_flow_run_state(run.id, Running(), force=True)
    found = worst(prefect_api, ENVIRONMENT)
    assert found.sentence == "the flow run orphan is Running, and no worker of the pool machine is online"
    client.request("POST", "/work_pools/{name}/workers/heartbeat", path_params={"name": "machine"}, json={"name": "me"})
    assert is_silent(prefect_api, ENVIRONMENT)


def test_a_run_that_no_worker_begins_is_found(client):
    late = Scheduled(scheduled_time=datetime.now(UTC) - timedelta(hours=1), name="Late")
    client.set_flow_run_state(client.create_flow_run(empty, name="waiting").id, late, force=True)
    assert worst(prefect_api, ENVIRONMENT).sentence == "the flow run waiting should have begun and waits"


def test_runs_of_the_future_and_late_ones_do_not_hide_one_without_a_worker(client, monkeypatch):
    monkeypatch.setattr(prefect_server, "MOST_RUNS", 1)
    monkeypatch.setattr(prefect_server, "SILENCE_HOURS", 0.0)
    now = datetime.now(UTC)
    late = Scheduled(scheduled_time=now - timedelta(hours=1), name="Late")
    for state in (late, Scheduled(scheduled_time=now + timedelta(hours=1))):
        client.set_flow_run_state(client.create_flow_run(empty).id, state, force=True)
    client.set_flow_run_state(client.create_flow_run(empty, name="silent").id, Running(), force=True)
    time.sleep(0.1)
    waits, silent = (each.sentence for each in prefect_api(ENVIRONMENT) if each.verdict == "warning")
    assert waits.endswith("should have begun and waits")
    assert silent.startswith("the flow run silent is Running")


def test_without_prefect_its_server_is_still_looked_at(client, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert [each.sentence.endswith(" answers") for each in prefect_api(ENVIRONMENT)] == [True]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("prefect.toml", 'api = "http://canary"\n'),
        ("profiles.toml", "profiles = 3\n"),
        ("profiles.toml", 'active = "mine"\nprofiles.mine = "canary"\n'),
        ("profiles.toml", "active = []\n[profiles]\n"),
    ],
)
def test_settings_of_another_form_are_found(tmp_path, monkeypatch, name, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    (tmp_path / name).write_text(text)
    found = worst(prefect_api, ENVIRONMENT).sentence
    assert found.endswith(f"{name} has a value where Prefect has a table of settings")


def test_a_key_that_is_not_text_of_a_header_is_found(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port()}/api")
    monkeypatch.setenv("PREFECT_API_KEY", "clé")
    assert worst(prefect_api, ENVIRONMENT).sentence == "PREFECT_API_KEY has characters that no key has"


def test_where_prefect_has_its_settings_the_server_is_found(client, tmp_path, monkeypatch):
    api = PREFECT_API_URL.value()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    assert [each.sentence[:26] for each in prefect_api(ENVIRONMENT)] == ["no Prefect server is named"]
    profiles = f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{api}"\n'
    for name, text in {
        "profiles.toml": profiles,
        "prefect.toml": f'[api]\nurl = "{api}"\n',
        ".env": f"PREFECT_API_URL={api}\n",
    }.items():
        (tmp_path / name).write_text(text)
        assert next(iter(prefect_api(ENVIRONMENT))).sentence.endswith(" answers"), name
        if name.endswith(".toml"):
            (tmp_path / name).write_text("[canary")
            assert worst(prefect_api, ENVIRONMENT).sentence.endswith("is not TOML")
        (tmp_path / name).unlink()


@pytest.mark.parametrize("prefix", ["admin:canary@", ""])
def test_a_server_that_does_not_answer_is_found_without_its_password(monkeypatch, prefix):
    monkeypatch.setenv("PREFECT_API_URL", f"http://{prefix}127.0.0.1:{free_port()}/api")
    found = worst(prefect_api, ENVIRONMENT)
    assert (found.verdict, "canary" in found.sentence + found.remedy) == ("problem", False)
    assert (
        os.environ["PREFECT_API_URL"].rpartition("@")[2].removesuffix("/api").removeprefix("http://") in found.sentence
    )
