"""Each dependency has its licence in the docs, and each push and week its audit."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

LOCK = Path("requirements.lock").read_text(encoding="utf-8")
PAGE = Path("docs/licences.md").read_text(encoding="utf-8")
WORKFLOW = Path(".github/workflows/ci.yaml")


def rows(page):
    return dict(re.findall(r"^\| ([a-z0-9.-]+) \| (.+) \|$", page, re.MULTILINE))


def without_licence(lock, page):
    """Return the packages of a lock file that a page gives no licence."""
    names = set(re.findall(r"^([a-z0-9.-]+)==", lock, re.MULTILINE))
    listed = {name: licence for name, licence in rows(page).items() if licence not in ("licence", "UNKNOWN")}
    return names - listed.keys(), listed.keys() - names


def test_every_package_of_the_lock_has_its_licence_in_the_docs():
    assert without_licence(LOCK, PAGE) == (set(), set()), "say `make licences`"


def test_a_package_without_one_is_found():
    """The control."""
    assert without_licence(LOCK + "newcomer==1.0\n", PAGE) == ({"newcomer"}, set())
    assert without_licence(LOCK, PAGE + "| leftover | MIT |\n") == (set(), {"leftover"})
    assert without_licence("torch==2.0\n", "| torch | UNKNOWN |\n") == ({"torch"}, set())


@pytest.mark.parametrize("copyleft", ["AGPL", "Affero", "SSPL"])
def test_no_licence_reaches_who_serves_a_model_over_a_network(copyleft):
    assert [name for name, licence in rows(PAGE).items() if copyleft in licence] == []


def test_the_workflow_audits_every_push_and_every_week_and_soaks_every_week():
    content = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    # YAML 1.1 reads the key `on` as true.
    begins = content[True]
    assert begins["push"] == {"branches": ["main"]}
    (weekly,) = begins["schedule"]
    assert re.fullmatch(r"\d+ \d+ \* \* \d", weekly["cron"])
    steps = content["jobs"]["audit"]["steps"]
    assert {"run": "make audit"} in steps
    assert [step["with"]["path"] for step in steps if "upload-artifact" in step.get("uses", "")] == ["sbom.json"]
    others = {name: job["if"] for name, job in content["jobs"].items() if name not in ("audit", "gpu", "soak")}
    assert all("github.event_name != 'schedule'" in condition for condition in others.values())
    assert content["jobs"]["soak"]["if"] == "github.event_name == 'schedule'"


def test_what_the_service_does_not_know_fails_the_audit():
    """Without --strict, pip-audit ends with 0 where it could look up nothing."""
    commands = subprocess.run(["make", "--dry-run", "audit"], capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in commands.splitlines() if "pip-audit==" in line]
    assert "--strict" in line
    assert "--requirement requirements.lock" in line


def test_the_workflow_is_one():
    tool = Path(sys.executable).with_name("check-jsonschema")
    done = subprocess.run(
        [tool, "--builtin-schema", "vendor.github-workflows", WORKFLOW], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
