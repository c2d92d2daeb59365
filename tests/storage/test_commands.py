"""The commands `upload` and `remote`, and DVC with the remote that was set up."""

import logging
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from botocore.configloader import load_config
from configobj import ConfigObj

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.stages import remote, upload
from flows import tasks
from flows.tasks import child_environment
from tests.flows.repository import ran, write_repository
from tests.storage.conftest import ACCESS, SECRET
from tests.storage.proxy import refuse, reset

CONFIG = Path(".dvc/config.local")


@pytest.fixture
def pictures(tmp_path):
    for number in range(20):
        file = tmp_path / "pictures" / str(number % 2) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes([number]) * 100)
    (tmp_path / "pictures/notes.txt").write_text("1")
    (tmp_path / "pictures/.hidden.png").write_text("1")
    return tmp_path / "pictures"


def test_an_upload_sends_what_is_not_there(admin, bucket, environment, pictures, proxy, capsys):
    upload.run(pictures, f"s3://{bucket}/p", environment)
    assert capsys.readouterr().out == (
        "upload: left out 1 files that are not images and 0 links that lead elsewhere\n"
        f"upload: sent 20 images to s3://{bucket}/p; 0 were there already\n"
    )
    (pictures / "1/1.png").write_bytes(b"other" * 20)
    proxy.requests.clear()
    upload.run(pictures, f"s3://{bucket}/p/", environment)
    assert capsys.readouterr().out.endswith(f"upload: sent 1 images to s3://{bucket}/p; 19 were there already\n")
    assert proxy.count("PUT") == 1
    assert admin.get_object(Bucket=bucket, Key="p/1/1.png")["Body"].read() == b"other" * 20


def test_an_upload_that_was_broken_off_goes_on(bucket, environment, pictures, proxy, capsys):
    proxy.trouble(refuse(403, "AccessDenied"), method="PUT", key="1/9.png", times=1)
    with pytest.raises(UserError, match=r"1/9\.png"):
        upload.run(pictures, f"s3://{bucket}/p", environment)
    sent = proxy.count("PUT")
    upload.run(pictures, f"s3://{bucket}/p", environment)
    assert proxy.count("PUT") < sent + 20
    assert "sent 20" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folder", "url", "sentence"),
    [
        ("pictures", "pictures", "upload: 'pictures' is not an address in an object store: write s3://bucket/prefix"),
        ("missing", "s3://bucket", "missing is not a folder"),
        (".git", "s3://bucket", r"\.git holds no image"),
    ],
)
def test_what_cannot_be_uploaded_is_told(environment, pictures, monkeypatch, folder, url, sentence):
    monkeypatch.chdir(pictures.parent)
    Path(".git").mkdir()
    with pytest.raises(UserError, match=sentence):
        upload.run(Path(folder), url, environment)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project as the working directory."""
    (tmp_path / "project/.dvc").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")


@pytest.mark.usefixtures("project")
def test_the_remote_is_written_for_its_owner_alone_and_alike_each_time(environment, bucket, capsys):
    CONFIG.write_text("[core]\nautostage = true\n[user]\nname = 'me'\n")
    given = environment.model_copy(
        update={"dvc_remote": f"s3://{bucket}/outputs/", "s3_region": "eu-1", "dvc_cache": Path("../cache")}
    )
    remote.run(given)
    content = CONFIG.read_bytes()
    assert ConfigObj(content.decode().splitlines()).dict() == {
        "core": {"autostage": "true", "remote": "store"},
        "user": {"name": "me"},
        'remote "store"': {
            "url": f"s3://{bucket}/outputs",
            "verify": "true",
            "endpointurl": environment.s3_endpoint,
            "configpath": "aws.local",
            "region": "eu-1",
            "access_key_id": ACCESS,
            "secret_access_key": SECRET,
        },
        "cache": {"dir": str(Path("../cache").absolute())},
    }
    assert stat.S_IMODE(CONFIG.stat().st_mode) == 0o600
    remote.run(given)
    assert CONFIG.read_bytes() == content
    assert {file.name for file in CONFIG.parent.iterdir()} == {"config.local", "aws.local"}
    assert SECRET not in "".join(capsys.readouterr())


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("text", [b"[core\nsecret = canary\n", b"\xff = canary"])
def test_a_damaged_configuration_is_told_and_stays(environment, bucket, text):
    CONFIG.write_bytes(text)
    with pytest.raises(UserError, match=r"config\.local is not a configuration of DVC: correct it") as raised:
        remote.run(environment.model_copy(update={"dvc_remote": f"s3://{bucket}"}))
    assert "canary" not in str(raised.value)
    assert CONFIG.read_bytes() == text


@pytest.mark.usefixtures("project")
def test_keys_that_are_no_longer_set_go(environment, bucket, monkeypatch):
    given = environment.model_copy(update={"dvc_remote": f"s3://{bucket}"})
    remote.run(given)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    remote.run(given.model_copy(update={"s3_access_key": None, "s3_secret_key": None}))
    assert SECRET not in CONFIG.read_text()


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("update", "sentence"),
    [
        ({"dvc_remote": None}, "DIFFUSION_DVC_REMOTE is not set: set it to s3://bucket/prefix"),
        ({"dvc_remote": "/mnt/share"}, "DIFFUSION_DVC_REMOTE: '/mnt/share' is not an address in an object store"),
        ({"dvc_remote": "s3://nowhere/p"}, "has no bucket nowhere"),
        ({"dvc_remote": "s3://nowhere/p", "s3_secret_key": None}, "DIFFUSION_S3_SECRET_KEY is not"),
    ],
)
def test_a_remote_that_cannot_be_used_is_told_and_not_written(environment, update, sentence):
    with pytest.raises(UserError, match=sentence):
        remote.run(environment.model_copy(update=update))
    assert not CONFIG.exists()


@pytest.mark.usefixtures("project")
def test_who_may_only_read_is_told_and_has_the_remote(environment, bucket, proxy, capsys):
    proxy.trouble(refuse(403, "AccessDenied"), method="PUT")
    remote.run(environment.model_copy(update={"dvc_remote": f"s3://{bucket}/outputs/"}))
    told = capsys.readouterr().out
    sentence = f"remote: these credentials can read s3://{bucket}/outputs and not write to it, so that nothing can be"
    assert f"{sentence} pushed\n" in told
    assert "remote: DVC shares outputs by" in told
    assert CONFIG.exists()


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("denied", [False, True])
def test_who_may_write_leaves_one_object_at_most(environment, bucket, admin, proxy, capsys, denied):
    if denied:
        proxy.trouble(refuse(403, "AccessDenied"), method="DELETE")
    for _ in range(2):
        remote.run(environment.model_copy(update={"dvc_remote": f"s3://{bucket}/outputs"}))
    assert "nothing can be pushed" not in capsys.readouterr().out
    assert (proxy.count("PUT", "outputs/.writable"), proxy.count("DELETE", "outputs/.writable")) == (2, 2)
    keys = [each["Key"] for each in admin.list_objects_v2(Bucket=bucket).get("Contents", [])]
    assert keys == (["outputs/.writable"] if denied else [])


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (refuse(507, "InsufficientStorage"), r"has no room for s3://bucket-\d+/outputs/\.writable: free some"),
        # As Ceph says it.
        (refuse(403, "QuotaExceeded"), "has no room for s3://"),
        (refuse(403, "SignatureDoesNotMatch"), "correct DIFFUSION_S3_SECRET_KEY"),
        (reset, "the connection to the store .* broke"),
    ],
)
def test_a_store_that_takes_nothing_is_told_before_it_is_written_down(environment, bucket, proxy, act, sentence):
    proxy.trouble(act, method="PUT")
    with pytest.raises(UserError, match=sentence):
        remote.run(environment.model_copy(update={"dvc_remote": f"s3://{bucket}/outputs"}))
    assert not CONFIG.exists()


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("variables", "profiles"),
    [
        ({}, {"default"}),
        ({"AWS_PROFILE": "default"}, {"default"}),
        ({"AWS_PROFILE": "at work"}, {"default", "at work"}),
        ({"AWS_PROFILE": "other", "AWS_DEFAULT_PROFILE": "work"}, {"default", "work"}),
    ],
)
def test_the_chosen_profile_has_the_same_settings(environment, bucket, monkeypatch, tmp_path, variables, profiles):
    config = tmp_path / "config"
    config.write_text("[default]\n[profile work]\nregion = us-east-1\n[profile 'at work']\nregion = us-east-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    remote.run(environment.model_copy(update={"dvc_remote": f"s3://{bucket}/outputs"}))
    found = load_config(".dvc/aws.local")["profiles"]
    assert set(found) == profiles
    assert all(each == found["default"] for each in found.values())
    assert found["default"]["s3"] == {"addressing_style": "path"}


@pytest.mark.usefixtures("project")
def test_a_file_that_goes_before_ours_is_told(environment, bucket, monkeypatch, capsys):
    given = environment.model_copy(update={"dvc_remote": f"s3://{bucket}/outputs"})
    monkeypatch.setenv("AWS_CONFIG_FILE", "/home/me/aws")
    remote.run(given)
    sentence = "remote: AWS_CONFIG_FILE is /home/me/aws, which DVC reads instead of .dvc/aws.local: unset it where you"
    assert sentence in capsys.readouterr().out
    for name in ("", str(Path(".dvc/aws.local").absolute())):
        monkeypatch.setenv("AWS_CONFIG_FILE", name)
        remote.run(given)
        assert "AWS_CONFIG_FILE" not in capsys.readouterr().out


@pytest.mark.usefixtures("project")
def test_what_was_for_another_store_goes_with_it(environment, bucket, monkeypatch):
    given = environment.model_copy(update={"dvc_remote": f"s3://{bucket}/outputs"})
    remote.run(given)
    assert Path(".dvc/aws.local").exists()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", given.s3_endpoint)
    remote.run(given.model_copy(update={"s3_endpoint": None}))
    assert not Path(".dvc/aws.local").exists()


def test_outside_of_a_project_it_is_told(environment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"\.dvc is missing: run the command from the project's folder"):
        remote.run(environment.model_copy(update={"dvc_remote": "s3://bucket"}))


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
