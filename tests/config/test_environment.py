"""The variables of the environment and of .env files."""

import pytest

from diffusion_core.config.environment import DEPLOYMENT, Environment, load_environment
from diffusion_core.errors import UserError


def test_an_address_with_a_password_is_not_shown():
    environment = Environment(tracking_uri="http://someone:canary@host")
    assert "canary" not in f"{environment} {environment!r} {environment.model_dump_json()}"


@pytest.mark.parametrize("name", ["checkpoints", "downloads", "dvc_cache", "compile_cache"])
def test_a_folder_below_somebodys_home_is_found_or_refused(monkeypatch, name):
    monkeypatch.setenv("HOME", "/somebody")
    monkeypatch.setenv(f"DIFFUSION_{name.upper()}", "~/folder")
    assert str(getattr(load_environment(), name)) == "/somebody/folder"
    monkeypatch.setenv(f"DIFFUSION_{name.upper()}", "~nosuchuser/folder")
    with pytest.raises(UserError) as raised:
        load_environment()
    assert str(raised.value) == (
        f"DIFFUSION_{name.upper()} is '~nosuchuser/folder': it must be a path without the ~ of a user whom this machine"
        " does not know"
    )


def test_environment_names_the_variable_that_is_wrong(monkeypatch):
    monkeypatch.setenv("DIFFUSION_DEVICE", "abacus")
    with pytest.raises(UserError, match="DIFFUSION_DEVICE is 'abacus': it must be 'auto', 'cpu', 'cuda' or 'mps'$"):
        load_environment()


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("htp://user:canary@host", ": did you mean http?"),
        ("HTPS://canary", ": did you mean https?"),
        ("postgres://user:canary@host/db", ": did you mean postgresql?"),
        ("gopher://canary", ""),
        ("canary@host", ""),
        ("http:canary@host", ""),
        ("file:///canary/mlruns", ""),
        ("./canary", ""),
    ],
)
def test_an_address_that_no_tracking_store_has_is_refused_at_once_and_not_shown(monkeypatch, uri, hint):
    monkeypatch.setenv("DIFFUSION_TRACKING_URI", uri)
    with pytest.raises(UserError) as raised:
        load_environment()
    assert str(raised.value) == (
        "DIFFUSION_TRACKING_URI must begin with one of http://, https://, sqlite://, postgresql://, mysql://, mssql://"
        f"{hint}"
    )


@pytest.mark.parametrize(
    "uri",
    ["http://host", "HTTPS://a:b@host", "sqlite:///mlflow.db", "postgresql+psycopg2://u:p@host/db", "mysql://h/d"],
)
def test_the_address_of_a_tracking_store_is_taken(monkeypatch, uri):
    monkeypatch.setenv("DIFFUSION_TRACKING_URI", uri)
    assert load_environment().tracking_uri.get_secret_value() == uri


@pytest.mark.parametrize(("processes", "wanted"), [("0", "greater than 0"), ("abc", "a whole number")])
def test_a_variable_of_two_types_tells_what_both_want(monkeypatch, processes, wanted):
    monkeypatch.setenv("DIFFUSION_PROCESSES", processes)
    with pytest.raises(UserError, match=f"^DIFFUSION_PROCESSES is '{processes}': it must be 'auto' or {wanted}$"):
        load_environment()


def test_one_checkpoint_is_not_enough(monkeypatch):
    monkeypatch.setenv("DIFFUSION_KEEP_CHECKPOINTS", "1")
    with pytest.raises(UserError, match="^DIFFUSION_KEEP_CHECKPOINTS is '1': it must be greater than or equal to 2$"):
        load_environment()


@pytest.mark.parametrize("place", ["environment", ".env"])
@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("DIFFUSION_THREAD", "DIFFUSION_THREADS"),
        ("DIFFUSION_PRECISON", "DIFFUSION_PRECISION"),
        ("DIFUSION_DEVICE", "DIFFUSION_DEVICE"),
        ("DIFFUSSION_DEVICE", "DIFFUSION_DEVICE"),
        ("DIFFUSOIN_DEVCE", "DIFFUSION_DEVICE"),
        ("diffusion_device", "DIFFUSION_DEVICE"),
        ("Difusion_Image", "DIFFUSION_IMAGE"),
    ],
)
def test_a_misspelt_variable_is_refused_wherever_it_stands(monkeypatch, tmp_path, place, name, nearest):
    monkeypatch.chdir(tmp_path)
    if place == ".env":
        (tmp_path / ".env").write_text(f"{name}=cpu\n", encoding="utf-8")
    else:
        monkeypatch.setenv(name, "cpu")
    with pytest.raises(UserError, match=rf"^{name} is not known: did you mean {nearest}\?$"):
        load_environment()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("DIFFUSION_DEVICE cpu canary\n", 1),
        ("# words\n\nA=1\n\n  canary\n", 5),
        ("A='one\ntwo'\nexport canary\n", 3),
        ('A=1\nDIFFUSION_S3_SECRET_KEY="canary\n', 2),
        ("=canary", 1),
    ],
)
def test_a_line_that_is_no_variable_is_refused_and_not_shown(monkeypatch, tmp_path, text, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(text, encoding="utf-8")
    with pytest.raises(
        UserError, match=f"^line {line} of .env is not a variable: write NAME=value, and close its quotes$"
    ):
        load_environment()


def test_what_env_files_may_have_is_read(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = "\ufeff# words\n\nexport DIFFUSION_DEVICE = 'cpu' # more\nOTHER=\n"
    (tmp_path / ".env").write_text(text, encoding="utf-8")
    assert load_environment().device == "cpu"
    (tmp_path / ".env").write_text(text, encoding="utf-16")
    with pytest.raises(UserError, match="^.env is not text in UTF-8: save it in that encoding$"):
        load_environment()
    (tmp_path / ".env").unlink()
    # Some give this name to a folder with an interpreter.
    (tmp_path / ".env").mkdir()
    assert load_environment().device == "auto"


def test_a_variable_that_is_like_no_other_is_told_with_the_nearest(monkeypatch, caplog, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFUSION_CHECK", "7")
    load_environment()
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == "DIFFUSION_CHECK is not known and changes nothing; the nearest is DIFFUSION_CHECKPOINTS"


def test_variables_of_others_are_no_misspellings(monkeypatch, caplog, tmp_path):
    monkeypatch.chdir(tmp_path)
    of_a_service = (
        "POSTGRES_SERVICE_HOST",
        "DB_SERVICE_PORT_SQL",
        "DB_PORT",
        "DB_PORT_5432_TCP",
        "DB_PORT_5432_TCP_ADDR",
    )
    names = [f"DIFFUSION_{name}" for name in (*DEPLOYMENT, *of_a_service, "DEVICE")]
    near = ("DIFFUSERS_DEVICE", "INFUSION_DEVICE", "STABLE_DIFFUSION_DEVICE", "FUSION_DEVICE", "DIFFUSION", "DEVICE")
    for name in (*names, *near, "DIFUSION_NUM_THREADS", "NUM_THREADS"):
        monkeypatch.setenv(name, "cpu")
    load_environment()
    assert not caplog.records
