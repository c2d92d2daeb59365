"""DVC with the remote that `diffusion remote` has set up."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.stages import remote
from flows import tasks
from flows.tasks import child_environment
from tests.flows.repository import ran, write_repository
from tests.storage.conftest import ACCESS, CONFIG, SECRET
from tests.storage.proxy import refuse, reset


def run(folder, *command, **variables):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != "AWS_CONFIG_FILE"}
    return subprocess.run(
        command, cwd=folder, env=environment | {"PATH": path} | variables, capture_output=True, text=True, check=False
    )


def dvc(folder, *arguments, fails=False, **variables):
    done = run(folder, sys.executable, "-m", "dvc", *arguments, **variables)
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    return done.stdout + done.stderr


def set_up(folder, environment, monkeypatch):
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        remote.run(environment)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A repository whose graph was run."""
    folder = tmp_path_factory.mktemp("finished") / "one"
    write_repository(folder)
    dvc(folder, "repro")
    assert len(ran(folder)) == 6
    for command in (
        ["add", "--all"],
        ["-c", "user.name=me", "-c", "user.email=me@localhost", "commit", "--quiet", "--message", "run"],
    ):
        assert run(folder, "git", *command).returncode == 0
    return folder


@pytest.fixture
def machine(finished, tmp_path, environment, bucket, monkeypatch):
    """The repository on the machine where it was run, with the remote."""
    folder = tmp_path / "one"
    shutil.copytree(finished, folder, symlinks=True)
    set_up(folder, environment.model_copy(update={"dvc_remote": f"s3://{bucket}/outputs"}), monkeypatch)
    return folder


@pytest.fixture
def clone(machine, tmp_path, environment, bucket, monkeypatch):
    """A fresh clone of it with the same remote."""
    folder = tmp_path / "two"
    assert run(tmp_path, "git", "clone", "--quiet", str(machine), str(folder)).returncode == 0
    set_up(folder, environment.model_copy(update={"dvc_remote": f"s3://{bucket}/outputs"}), monkeypatch)
    return folder


def outputs(folder):
    names = ("data", "models", "samples", "metrics", "plots")
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for name in names
        for file in sorted((folder / name).rglob("*"))
        if file.is_file() and file.name != ".gitignore"
    }


def test_a_fresh_clone_pulls_and_computes_nothing(machine, clone, proxy):
    dvc(machine, "push")
    assert not [name for each in proxy.requests for name in each.headers if "checksum" in name.lower()]
    dvc(clone, "pull")
    dvc(clone, "repro")
    assert ran(clone) == []
    assert outputs(clone) == outputs(machine)
    assert (clone / "dvc.lock").read_bytes() == (machine / "dvc.lock").read_bytes()


def test_without_its_file_dvc_would_send_amazons_checksums(machine, proxy):
    """The premise of the test above."""
    (machine / ".dvc/aws.local").write_text("[default]\n")
    run(machine, sys.executable, "-m", "dvc", "push")
    assert [name for each in proxy.requests for name in each.headers if "checksum" in name.lower()]


def checksums(proxy):
    return [name for each in proxy.requests for name in each.headers if "checksum" in name.lower()]


@pytest.mark.parametrize("known", [True, False])
def test_a_profile_of_the_users_own_does_not_keep_dvc_from_the_store(
    machine, environment, bucket, monkeypatch, tmp_path, known, proxy
):
    """DVC reads our file instead of the user's, so that the profile must be there."""
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/config").write_text("[profile work]\nregion = us-east-1\n")
    if known:
        with monkeypatch.context() as patch:
            patch.setenv("AWS_PROFILE", "work")
            patch.setenv("AWS_CONFIG_FILE", str(tmp_path / ".aws/config"))
            given = environment.model_copy(update={"dvc_remote": f"s3://{bucket}/outputs"})
            set_up(machine, given, patch)
    told = dvc(machine, "push", fails=not known, HOME=str(tmp_path), AWS_PROFILE="work")
    assert known or "work) could not be found" in told
    assert not checksums(proxy)


@pytest.mark.parametrize("shares", [True, False])
def test_a_flows_dvc_reads_our_file_whatever_the_user_has_exported(machine, monkeypatch, tmp_path, proxy, shares):
    config = tmp_path / "config"
    config.write_text("[default]\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.chdir(machine)
    variables = child_environment(shares)
    assert variables["AWS_CONFIG_FILE"] == str(machine / ".dvc/aws.local" if shares else config)
    dvc(machine, "push", AWS_CONFIG_FILE=variables["AWS_CONFIG_FILE"])
    assert bool(checksums(proxy)) != shares


def test_where_there_is_no_file_of_ours_a_flow_leaves_the_users(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/home/me/aws")
    assert child_environment(shares=True)["AWS_CONFIG_FILE"] == "/home/me/aws"


@pytest.mark.parametrize(
    ("stage", "module", "shares"),
    [
        ("pull", ["dvc", "pull"], True),
        ("train", ["dvc", "repro", "train"], True),
        ("pull", ["diffusion_core", "remote"], False),
        # The user's bucket, by the user's settings.
        ("ingest", ["dvc", "repro", "ingest"], False),
    ],
)
def test_only_a_dvc_that_may_share_is_given_it(monkeypatch, stage, module, shares):
    given = []
    monkeypatch.setattr(tasks, "get_run_logger", lambda: logging.getLogger("test"))
    monkeypatch.setattr(tasks, "child_environment", lambda shares: given.append(shares) or {})
    monkeypatch.setattr(tasks, "run_child", lambda *arguments: 0)
    tasks.run_module(stage, module)
    assert given == [shares]


def test_an_interrupted_push_is_completed_by_the_next(machine, clone, admin, bucket, proxy):
    first = next(each for each in sorted((machine / ".dvc/cache/files/md5").rglob("*")) if each.is_file())
    lost = f"{first.parent.name}/{first.name}"
    proxy.trouble(refuse(403, "AccessDenied"), method="PUT", key=lost, times=1)
    dvc(machine, "push", fails=True)
    keys = [each["Key"] for each in admin.list_objects_v2(Bucket=bucket).get("Contents", [])]
    assert not [key for key in keys if key.endswith(lost)]
    dvc(machine, "push")
    dvc(clone, "pull")
    assert outputs(clone) == outputs(machine)


def test_a_push_survives_a_connection_that_breaks(machine, proxy):
    proxy.trouble(reset, method="PUT", times=2)
    dvc(machine, "push")
    assert "up to date" in dvc(machine, "push")


def flip_in_remote(admin, bucket):
    keys = [each["Key"] for each in admin.list_objects_v2(Bucket=bucket)["Contents"]]
    key = next(key for key in keys if not key.endswith(".dir"))
    body = bytearray(admin.get_object(Bucket=bucket, Key=key)["Body"].read())
    body[0] ^= 1
    admin.put_object(Bucket=bucket, Key=key, Body=bytes(body))


@pytest.mark.parametrize("verified", [True, False])
def test_a_flipped_byte_in_the_remote_is_noticed_by_who_pulls(machine, clone, admin, bucket, verified):
    dvc(machine, "push")
    flip_in_remote(admin, bucket)
    config = clone / CONFIG
    if not verified:
        # What happens without: DVC trusts what it gets.
        config.write_text(config.read_text().replace("verify = true", "verify = false"))
    dvc(clone, "pull", fails=verified)
    assert (outputs(clone) != outputs(machine)) or verified


def test_no_secret_is_in_messages_or_files(machine, environment, bucket, tmp_path, proxy):
    variables = {
        "DIFFUSION_S3_ENDPOINT": environment.s3_endpoint,
        "DIFFUSION_S3_ACCESS_KEY": ACCESS,
        "DIFFUSION_S3_SECRET_KEY": SECRET,
        "DIFFUSION_DVC_REMOTE": f"s3://{bucket}/outputs",
        "PYTHONPATH": str(Path.cwd()),
    }
    (machine / "pictures").mkdir()
    (machine / "pictures/1.png").write_bytes(b"1")
    shutil.rmtree(machine / "diffusion_core")
    (machine / CONFIG).unlink()
    told = ""
    for act in (None, refuse(403, "SignatureDoesNotMatch")):
        if act:
            proxy.trouble(act, key="LIST", times=2)
        for command in (["remote"], ["upload", "pictures", f"s3://{bucket}/p"]):
            done = run(machine, sys.executable, "-m", "diffusion_core", *command, **variables)
            assert done.returncode == (2 if act else 0), done.stderr
            told += done.stdout + done.stderr
        proxy.troubles.clear()
    done = run(
        machine, sys.executable, "-m", "diffusion_core", "remote",
        **variables | {"DIFFUSION_S3_ENDPOINT": f"http://me:{SECRET}@127.0.0.1:1"},
    )  # fmt: skip
    told += done.stdout + done.stderr
    assert SECRET not in told
    assert told.count("error: ") == 3
    holders = [file for file in machine.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
    assert holders == [machine / CONFIG]


def test_the_environments_own_fields_show_no_secret():
    environment = Environment(s3_access_key="canary", s3_secret_key="canary")
    assert "canary" not in f"{environment} {environment!r} {environment.model_dump_json()}"


# The command `remote`, which may write no file of more bytes, as where a disk is full.
LIMITED = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))
runpy.run_module("diffusion_core", run_name="__main__", alter_sys=True)
"""


def test_a_full_disk_keeps_the_configuration_and_leaves_no_part_of_the_keys(machine, environment, bucket):
    before = (machine / CONFIG).read_bytes()
    variables = {
        "DIFFUSION_S3_ENDPOINT": environment.s3_endpoint,
        "DIFFUSION_S3_ACCESS_KEY": ACCESS,
        "DIFFUSION_S3_SECRET_KEY": SECRET,
        "DIFFUSION_DVC_REMOTE": f"s3://{bucket}/other",
        "PYTHONPATH": str(Path.cwd()),
    }
    shutil.rmtree(machine / "diffusion_core")
    # The file of settings fits.
    limited = LIMITED.replace("LARGEST", str((machine / ".dvc/aws.local").stat().st_size))
    done = run(machine, sys.executable, "-c", limited, "remote", **variables)
    assert done.returncode == 2, done.stderr
    assert "error: the disk refuses .dvc/.config.local.tmp-" in done.stderr
    assert (machine / CONFIG).read_bytes() == before
    assert not [*(machine / ".dvc").glob(".*tmp*")]
    # The control: with room it changes.
    assert (
        run(machine, sys.executable, "-c", limited.replace("resource.set", "#"), "remote", **variables).returncode == 0
    )
    assert b"/other" in (machine / CONFIG).read_bytes()
