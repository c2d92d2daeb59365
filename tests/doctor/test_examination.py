"""The command as a whole."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
import torch

from diffusion_core.config.environment import Environment
from diffusion_core.doctor import examination
from diffusion_core.doctor.diagnosis import ok, problem, warning
from diffusion_core.doctor.examination import CHECKS
from diffusion_core.runtime.device import why_no_cuda
from tests.flows.repository import CHECKOUT

COMMAND = [sys.executable, "-m", "diffusion_core", "doctor"]


def test_servers_that_never_answer_cost_little_time_and_hide_nothing_else(folder, silent_port, monkeypatch, capsys):
    address = f"http://127.0.0.1:{silent_port}"
    monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:canary")
    environment = Environment(
        tracking_uri=address.replace("//", "//admin:canary@"),
        s3_endpoint=address,
        s3_access_key="canary",
        s3_secret_key="canary",
        dvc_remote="s3://outputs/dvc",
    )
    # Without those that take a processor's time, which other work on the machine would make longer.
    slow = ("prefect_import", "computation")
    checks = {group: [each for each in checks if each.__name__ not in slow] for group, checks in CHECKS.items()}
    monkeypatch.setattr(examination, "CHECKS", checks)
    before, began = sorted(folder.rglob("*")), time.monotonic()
    with pytest.raises(SystemExit) as left:
        examination.run(environment, as_json=True)
    # The clients' own patience with such servers is minutes.
    assert time.monotonic() - began < examination.SECONDS + 10.0
    assert left.value.code == 1
    printed = capsys.readouterr().out
    found = json.loads(printed)
    failed = {each["check"] for each in found["checks"] if each["verdict"] == "problem"}
    assert failed == {"tracking_store", "object_store", "prefect_api"}
    assert found["problems"] == 3
    assert {"packages", "driver", "disks"} <= {each["check"] for each in found["checks"]}
    assert "canary" not in printed
    assert sorted(folder.rglob("*")) == before


def test_the_command_makes_every_check(folder):
    done = subprocess.run([*COMMAND, "--json"], capture_output=True, text=True, check=False)
    made = {each["check"] for each in json.loads(done.stdout)["checks"]}
    assert {"processors", "params", "packages", "prefect_import", "computation", "tracking_store"} <= made
    assert list(folder.iterdir()) == []


def test_a_misspelled_variable_is_refused_at_once(folder):
    (folder / ".env").write_text("DIFFUSION_REGISTRED_MODEL=pictures\n")
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "DIFFUSION_REGISTRED_MODEL is not known: did you mean DIFFUSION_REGISTERED_MODEL?" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused():
    done = subprocess.run(
        COMMAND, env=os.environ | {"DIFFUSION_DEVICE": "cuda"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"error: DIFFUSION_DEVICE is cuda, and {why_no_cuda()}: set it to auto" in done.stderr


def lends(_):
    yield ok("it is well")
    yield warning("it is slow", "wait")


def fails(_):
    yield problem("it is broken", "fix it")


def refuses(_):
    raise PermissionError(13, "Permission denied", "file")
    yield


def hangs(_):
    time.sleep(60)
    yield


@pytest.fixture
def checks(monkeypatch):
    def arrange(*checks):
        monkeypatch.setattr(examination, "CHECKS", {"first": checks[:1], "second": checks[1:]})
        monkeypatch.setattr(examination, "ALONE", checks[0])

    return arrange


def test_warnings_alone_are_no_failure(checks, capsys):
    checks(lends, lends)
    examination.run(Environment())
    printed = capsys.readouterr().out
    assert printed.splitlines()[:4] == ["first", "  ok       it is well", "  warning  it is slow", "           -> wait"]
    assert printed.endswith("problems: 0, warnings: 2, fine: 2\n")


def test_problems_are_exit_code_1_and_what_hangs_or_cannot_be_looked_at_is_one(checks, capsys, monkeypatch):
    monkeypatch.setattr(examination, "SECONDS", 0.5)
    checks(lends, fails, refuses, hangs)
    with pytest.raises(SystemExit) as left:
        examination.run(Environment())
    assert left.value.code == 1
    printed = capsys.readouterr().out
    assert "problem  it is broken\n           -> fix it" in printed
    assert "Permission denied" in printed
    assert "the check hangs had no answer" in printed
    assert "problems: 3, warnings: 1, fine: 1" in printed


def test_a_mistake_in_a_check_is_not_hidden(checks):
    def broken(_):
        raise ZeroDivisionError
        yield

    checks(lends, broken)
    with pytest.raises(ZeroDivisionError):
        examination.run(Environment())


def test_the_page_of_the_documents_has_every_check():
    page = (CHECKOUT / "docs/doctor.md").read_text(encoding="utf-8")
    names = {check.__name__ for checks in CHECKS.values() for check in checks}
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == names
