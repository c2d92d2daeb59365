"""The digits of the stages' tests, the store of the storage's, and projects of git and DVC."""

import shutil
import sys

import pytest

from diffusion_core.__main__ import main
from diffusion_core.address import S3Address
from diffusion_core.config.environment import Environment
from diffusion_core.registry.connection import connect
from diffusion_core.registry.experiments import experiment_id
from diffusion_core.registry.publication import register
from diffusion_core.stages.copies import Copies
from diffusion_core.storage import open_store
from tests.faults.cleaning import add_version
from tests.faults.git_dvc import DVC, GIT, say
from tests.faults.hostile import MARKER, sentence
from tests.registry.projects import empty_store, new_environment, write_model
from tests.stages.conftest import digits, environment, project
from tests.storage.conftest import ACCESS, SECRET, admin, bucket, proxy, server

__all__ = ["admin", "bucket", "digits", "environment", "project", "proxy", "server"]


@pytest.fixture
def is_refused(monkeypatch, capsys):
    """Return a function that runs a command, which must end with one sentence, and returns the sentence."""
    monkeypatch.setenv("DIFFUSION_DEVICE", "cpu")
    monkeypatch.setenv("DIFFUSION_PRECISION", "float32")

    def refuse(folder, *arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["diffusion", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        assert not (folder / MARKER).exists()
        return sentence(left.value.code, capsys.readouterr().err)

    return refuse


@pytest.fixture
def copies(proxy, bucket, tmp_path):
    """Return a function that makes the folder of a training at a place, and its copies in the bucket."""
    environment = Environment(s3_endpoint=proxy.url, s3_access_key=ACCESS, s3_secret_key=SECRET)

    def made(name="a" * 16, place="here"):
        (tmp_path / place / name).mkdir(parents=True, exist_ok=True)
        return Copies(open_store(environment), S3Address(bucket, "copies/"), tmp_path / place / name)

    return made


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """The bytes of a store with a version of another model, which names nothing of these projects."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    file.write_bytes(empty_store())
    add_version(connect(Environment(tracking_uri=f"sqlite:///{file}")), "other", {})
    return file.read_bytes()


@pytest.fixture
def dvc_project(tmp_path, monkeypatch, store):
    """A new project of git and DVC as the working directory, with that store."""
    monkeypatch.chdir(tmp_path)
    say("git", "init", "-q", "-b", "main")
    say(*DVC, "init", "-q")
    (tmp_path / "mlflow.db").write_bytes(store)
    return tmp_path


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A project with a folder, a model and a champion, all of it in DVC's cache and in its remote."""
    folder = tmp_path_factory.mktemp("whole") / "project"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        say("git", "init", "-q")
        say(*DVC, "init", "-q")
        say(*DVC, "remote", "add", "-d", "store", str(folder.parent / "remote"))
        for number in range(3):
            file = folder / f"pictures/{number}.bin"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(bytes([number]) * 1000)
        write_model(folder / "models")
        say(*DVC, "add", "-q", "pictures", "models")
        say(*DVC, "push", "-q")
        say(*GIT, "add", "-A")
        say(*GIT, "commit", "-q", "-m", "data")
        environment = new_environment(folder)
        client = connect(environment)
        training = client.create_run(experiment_id(client, environment))
        version = register(client, training, environment.registered_model, folder / "models", {})
        client.set_registered_model_alias(version.name, "champion", version.version)
    return folder


@pytest.fixture
def whole_project(whole, tmp_path, monkeypatch):
    """The project as the working directory; each test gets it whole, as the paths in its store are absolute."""
    saved = tmp_path / "saved"
    shutil.copytree(whole.parent, saved, symlinks=True)
    monkeypatch.chdir(whole)
    # DVC notes the time and hash of each file.
    say(*DVC, "status")
    yield whole
    # The database keeps its file, which MLflow holds open.
    for path in (*whole.parent.glob("remote"), *(each for each in whole.iterdir() if each.name != "mlflow.db")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(saved, whole.parent, symlinks=True, dirs_exist_ok=True)
