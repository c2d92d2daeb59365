"""What docs/operate.md sets behind a proxy with TLS is what MLflow, Prefect and Compose know, and does what it says."""

import re
from pathlib import Path

import prefect.settings
import pytest
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient
from flask import Flask
from mlflow import environment_variables
from mlflow.server.fastapi_security import init_fastapi_security

PAGE = Path("docs/operate.md").read_text(encoding="utf-8").partition("## TLS in front of the pages")[2]
(BLOCK,) = re.findall(r"```yaml\n(services:.*?)```", PAGE, re.DOTALL)
SERVICES = yaml.safe_load(BLOCK)["services"]
MLFLOW = SERVICES["mlflow"]["environment"]
PATH = "/api/2.0/mlflow/experiments/create"


def status(monkeypatch, variables, host, origin=None):
    """Ask MLflow's checks, before a route that always answers 200."""
    for name in ("MLFLOW_SERVER_ALLOWED_HOSTS", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    app = FastAPI()
    app.post(PATH)(lambda: {})
    init_fastapi_security(app)
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    return TestClient(app).post(PATH, headers=headers).status_code


@pytest.mark.parametrize(
    ("host", "origin", "answer"),
    [
        ("mlflow.example.org", "https://mlflow.example.org", 200),
        ("mlflow.example.org", None, 200),
        ("mlflow:5000", None, 200),
        ("127.0.0.1:5000", None, 200),
        ("evil.example", None, 403),
        ("mlflow.example.org", "https://evil.example", 403),
        ("mlflow.example.org", "http://mlflow.example.org", 403),
    ],
)
def test_mlflow_takes_its_own_name_and_pages_alone(monkeypatch, host, origin, answer):
    assert status(monkeypatch, MLFLOW, host, origin) == answer


def test_without_the_settings_its_pages_could_change_nothing(monkeypatch):
    """The control."""
    known = yaml.safe_load(Path("docker/compose.yaml").read_text(encoding="utf-8"))["services"]["mlflow"]["environment"]
    hosts = {"MLFLOW_SERVER_ALLOWED_HOSTS": known["MLFLOW_SERVER_ALLOWED_HOSTS"]}
    assert status(monkeypatch, hosts, "mlflow.example.org") == 403
    hosts = {"MLFLOW_SERVER_ALLOWED_HOSTS": MLFLOW["MLFLOW_SERVER_ALLOWED_HOSTS"]}
    assert status(monkeypatch, hosts, "mlflow.example.org", "https://mlflow.example.org") == 403


def test_every_setting_that_the_page_names_is_one():
    names = set(re.findall(r"(?:MLFLOW|PREFECT)_[A-Z_]+", PAGE.partition("## Day two")[0]))
    assert len(names) > 8
    owners = (environment_variables, prefect.settings)
    assert [name for name in sorted(names) if not any(hasattr(owner, name) for owner in owners)] == []
    assert not any(hasattr(owner, "PREFECT_UI_URI") for owner in owners)


def test_the_services_are_those_of_compose():
    composed = yaml.safe_load(Path("docker/compose.yaml").read_text(encoding="utf-8"))["services"]
    assert SERVICES.keys() <= composed.keys()
    assert "DIFFUSION_TRACKING_PAGE" in composed["worker"]["environment"]


def test_scripts_cannot_read_the_cookie_and_the_proxy_makes_it_secure():
    """MLflow signs its one cookie by Flask's session, and sets none of Flask's options."""
    defaults = Flask("any").config
    assert (defaults["SESSION_COOKIE_HTTPONLY"], defaults["SESSION_COOKIE_SECURE"]) == (True, False)
    assert "proxy_cookie_flags ~ secure samesite=strict;" in PAGE
