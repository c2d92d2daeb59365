"""The commands `upload` and `remote`."""

import stat
from pathlib import Path

import pytest
from botocore.configloader import load_config
from configobj import ConfigObj

from diffusion_core.errors import UserError
from diffusion_core.stages import remote, upload
from tests.storage.conftest import ACCESS, CONFIG, SECRET
from tests.storage.proxy import refuse, reset


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
        "upload: left out files that are not images: 1, and links that lead elsewhere: 0\n"
        f"upload: sent 20 files to s3://{bucket}/p; 0 were there already\n"
    )
    (pictures / "1/1.png").write_bytes(b"other" * 20)
    proxy.requests.clear()
    upload.run(pictures, f"s3://{bucket}/p/", environment)
    assert capsys.readouterr().out.endswith(f"upload: sent 1 file to s3://{bucket}/p; 19 were there already\n")
    assert proxy.count("PUT") == 1
    assert admin.get_object(Bucket=bucket, Key="p/1/1.png")["Body"].read() == b"other" * 20


def test_an_upload_sends_tables_of_labels(admin, bucket, environment, pictures, capsys):
    (pictures / "labels.csv").write_text("file_name,label\n")
    upload.run(pictures, f"s3://{bucket}/p", environment)
    assert "sent 21 files" in capsys.readouterr().out
    assert admin.get_object(Bucket=bucket, Key="p/labels.csv")["Body"].read() == b"file_name,label\n"


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
