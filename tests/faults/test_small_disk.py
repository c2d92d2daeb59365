"""Tests of full disks are skipped where this user may mount none, and fail there in CI, which permits it."""

from pathlib import Path

import pytest
import yaml

from tests.faults import disks


@pytest.mark.parametrize(("variables", "outcome"), [({"CI": "true"}, pytest.fail), ({}, pytest.skip)])
def test_where_no_filesystem_can_be_mounted_only_ci_fails(monkeypatch, tmp_path, variables, outcome):
    monkeypatch.delenv("CI", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    # Root of a namespace of users may still not mount outside of one for mounts.
    monkeypatch.setattr(disks, "NAMESPACES", (("--user", "--map-root-user"),))
    # Either: the other outcome would end this test as its own.
    either = (pytest.fail.Exception, pytest.skip.Exception)
    refused = pytest.raises(either, match="mounts no filesystem for its users: .+")
    with refused as given, disks.small_disk(tmp_path / "disk", 1):
        pass
    assert given.type is outcome.Exception


def test_ci_lets_its_users_mount():
    content = yaml.safe_load(Path(".github/workflows/ci.yaml").read_text(encoding="utf-8"))
    commands = [step.get("run", "") for step in content["jobs"]["test"]["steps"]]
    permits = next(
        number for number, command in enumerate(commands) if "apparmor_restrict_unprivileged_userns=0" in command
    )
    assert permits < commands.index("make test")
