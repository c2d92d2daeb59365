"""The object store, passwords and clocks."""

import json
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler

import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.doctor import passwords
from diffusion_core.doctor.clock import clock
from diffusion_core.doctor.object_store import object_store
from diffusion_core.doctor.passwords import compose_passwords, readable_secrets, stack_passwords
from diffusion_core.errors import UserError
from stack.home import keep_home, open_home
from tests.doctor.findings import is_silent, worst
from tests.registry.servers import serving
from tests.storage.conftest import ACCESS, SECRET

ENVIRONMENT = Environment()


@pytest.fixture
def environment(server, admin):
    with suppress(admin.exceptions.BucketAlreadyExists):
        admin.create_bucket(Bucket="outputs")
    return Environment(s3_endpoint=server, s3_access_key=ACCESS, s3_secret_key=SECRET, dvc_remote="s3://outputs/dvc")


def test_a_store_that_has_the_bucket_is_well(environment):
    assert is_silent(object_store, environment)
    assert is_silent(object_store, ENVIRONMENT)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"s3_secret_key": "wrong"}, "the secret is not that of the key id"),
        ({"s3_access_key": "wrong"}, "does not know the key id"),
        ({"dvc_remote": "s3://elsewhere/dvc"}, "has no bucket elsewhere"),
        ({"dvc_remote": "outputs"}, "DIFFUSION_DVC_REMOTE: 'outputs' is not an address"),
        ({"s3_secret_key": None}, "DIFFUSION_S3_SECRET_KEY is not"),
    ],
)
def test_what_the_store_refuses_is_found_without_a_secret(environment, change, words):
    wrong = Environment(**{**environment.model_dump(), **change})
    found = worst(object_store, wrong)
    assert words in found.sentence
    assert not any(secret in found.sentence + found.remedy for secret in (SECRET, "wrong"))


def test_a_bucket_that_is_missing_does_not_hide_the_others(environment):
    places = {"dvc_remote": "s3://elsewhere/dvc", "checkpoint_copies": "s3://outputs/copies"}
    missing, there = object_store(environment.model_copy(update=places))
    assert "has no bucket elsewhere" in missing.sentence
    assert (there.verdict, "the bucket outputs (DIFFUSION_CHECKPOINT_COPIES)" in there.sentence) == ("ok", True)


def test_a_store_that_never_answers_is_found_soon(environment, silent_port):
    began = time.monotonic()
    address, copies = f"http://127.0.0.1:{silent_port}", "s3://another/copies"
    update = {"s3_endpoint": address, "checkpoint_copies": copies}
    found = worst(object_store, environment.model_copy(update=update))
    assert "does not answer" in found.sentence or "stalled" in found.sentence
    assert time.monotonic() - began < 8.0


class _Clock(BaseHTTPRequestHandler):
    seconds = 0.0

    def do_GET(self):
        self.send_response(403)
        self.end_headers()

    def date_time_string(self, timestamp=None):
        return super().date_time_string(time.time() + self.seconds)

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(("seconds", "verdict"), [(0, None), (-300, "warning"), (1200, "problem"), (-1200, "problem")])
def test_a_clock_that_is_off_is_found(monkeypatch, seconds, verdict):
    monkeypatch.setattr(_Clock, "seconds", seconds)
    with serving(_Clock) as server:
        environment = Environment(s3_endpoint=f"http://127.0.0.1:{server.server_port}")
        if verdict is None:
            assert [each.verdict for each in clock(environment)] == ["ok"]
        else:
            found = worst(clock, environment)
            assert found.verdict == verdict
            assert ("behind" if seconds > 0 else "after") in found.sentence


@pytest.fixture
def home(folder, locked_server):
    """The stack's files, with the password that the server has for both names."""
    home = open_home(folder / ".stack")
    for name in ("mlflow", "prefect"):
        home.ports[name], home.passwords[name] = locked_server, "right"
    keep_home(home)
    return home


def test_the_passwords_of_the_stack_are_compared_with_those_of_its_servers(home):
    assert len([*stack_passwords(ENVIRONMENT)]) == 2
    assert is_silent(stack_passwords, ENVIRONMENT)
    home.passwords["mlflow"] = "canary"
    keep_home(home)
    found = worst(stack_passwords, ENVIRONMENT)
    assert found.sentence.startswith("the mlflow server at port")
    assert "canary" not in found.sentence + found.remedy


def test_a_change_of_passwords_that_was_interrupted_is_found(home):
    home.next_passwords["mlflow"] = "canary"
    keep_home(home)
    found = worst(stack_passwords, ENVIRONMENT)
    assert ("renew-passwords" in found.remedy, "canary" in found.sentence) == (True, False)


def test_a_shell_with_older_variables_is_found(home, monkeypatch):
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:canary")
    found = worst(stack_passwords, ENVIRONMENT)
    assert found.sentence.endswith(".stack/env for PREFECT_API_AUTH_STRING")


@pytest.mark.parametrize(("password", "is_right"), [("right", True), ("canary", False)])
def test_the_password_in_the_file_of_compose_is_compared_with_the_servers(folder, locked_server, password, is_right):
    (folder / "docker").mkdir()
    (folder / "docker/.env").write_text(
        f"MLFLOW_PASSWORD={password}\nMLFLOW_PORT={locked_server}\nPREFECT_PASSWORD=right\nPREFECT_PORT={locked_server}\n"
    )
    assert is_silent(compose_passwords, ENVIRONMENT) == is_right
    assert not any("canary" in each.sentence for each in compose_passwords(ENVIRONMENT))


def test_secrets_that_others_can_read_are_found(folder):
    (folder / ".env").write_text("DIFFUSION_DEVICE=cpu\n")
    (folder / ".env").chmod(0o644)
    assert not [*readable_secrets(ENVIRONMENT)]
    (folder / ".env").write_text("DIFFUSION_S3_SECRET_KEY=canary\n")
    assert worst(readable_secrets, ENVIRONMENT).remedy == "`chmod 600 .env`"
    (folder / ".env").write_text("DIFFUSION_TRACKING_URI=http://127.0.0.1:5000\n")
    assert not [*readable_secrets(ENVIRONMENT)]
    for each in ("SERVE_TOKEN=canary", "NOTIFY=slack://canary", "TRACKING_URI=http://me:canary@127.0.0.1:5000"):
        (folder / ".env").write_text(f"DIFFUSION_{each}\n")
        assert worst(readable_secrets, ENVIRONMENT).remedy == "`chmod 600 .env`"
    (folder / ".env").chmod(0o600)
    assert not [*readable_secrets(ENVIRONMENT)]


class _Foreign(BaseHTTPRequestHandler):
    """A server that has nothing to do with the files."""

    code = 200

    def do_GET(self):
        self.server.logins.append(self.headers["Authorization"])
        self.send_response(self.code)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(("code", "verdicts"), [(200, {"warning"}), (403, set()), (404, set()), (500, set())])
def test_a_server_that_asks_for_no_login_gets_no_password(folder, monkeypatch, code, verdicts):
    monkeypatch.setattr(_Foreign, "code", code)
    with serving(_Foreign) as server:
        server.logins, port = [], server.server_port
        (folder / "docker").mkdir()
        (folder / "docker/.env").write_text(
            f"MLFLOW_PASSWORD=canary\nMLFLOW_PORT={port}\nPREFECT_PASSWORD=canary\nPREFECT_PORT={port}\n"
        )
        found = [*compose_passwords(ENVIRONMENT)]
        assert server.logins == [None, None]
    assert {each.verdict for each in found} == verdicts
    assert all("asks for no password" in each.sentence for each in found)


@pytest.mark.parametrize("port", ["abc", "70000"])
def test_a_port_that_is_none_is_found_and_the_other_server_is_asked(folder, locked_server, port):
    (folder / "docker").mkdir()
    (folder / "docker/.env").write_text(f"MLFLOW_PORT={port}\nPREFECT_PASSWORD=right\nPREFECT_PORT={locked_server}\n")
    wrong, asked = compose_passwords(ENVIRONMENT)
    assert (wrong.verdict, wrong.sentence) == ("problem", "MLFLOW_PORT in docker/.env is not a port")
    assert asked.sentence.startswith("the prefect server at port")


def test_a_file_of_passwords_that_is_not_text_is_refused(folder):
    (folder / "docker").mkdir()
    (folder / "docker/.env").write_bytes(b"MLFLOW_PASSWORD=\xff\n")
    with pytest.raises(UserError, match=r"^docker/\.env is not text in UTF-8: "):
        [*compose_passwords(ENVIRONMENT)]


@pytest.mark.parametrize(
    "change", [{"ports": 3}, {"ports": {}}, {"ports": {"mlflow": "abc", "prefect": 1}}, {"passwords": {}}]
)
def test_a_damaged_file_of_the_stack_is_found(home, change):
    file = home.folder / "home.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert "is damaged" in worst(passwords.stack_passwords, ENVIRONMENT).sentence
