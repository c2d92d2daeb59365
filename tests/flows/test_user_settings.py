"""The user's own Prefect settings count; without any, everything stays in the project's folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL

from tests.flows.repository import CHECKOUT

PROFILES = """
active = "mine"
[profiles.mine]
PREFECT_API_URL = "{url}"
"""


@pytest.fixture
def user(tmp_path):
    """Variables of a user who has set nothing, in a home of their own."""
    (tmp_path / "home").mkdir()
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(CHECKOUT),
    }


@pytest.fixture
def folder(tmp_path):
    """A project's folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def write_profile(user, url):
    folder = Path(user["HOME"], ".prefect")
    folder.mkdir()
    (folder / "profiles.toml").write_text(PROFILES.format(url=url))


def python(variables, folder, *arguments):
    """Run Python to its end, or to TERM after a minute."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        # This folder is no checkout, and `flows` is installed nowhere.
        env={**variables, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.terminate()
        output = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, *output)


def home(variables, folder):
    return python(variables, folder, "-c", "import flows, os; print(os.environ.get('PREFECT_HOME'))").stdout.strip()


@pytest.mark.parametrize("module", ["flows.pipeline", "stack.serve", "diffusion_core.supervision.worker"])
def test_whatever_starts_prefect_sets_its_variables_and_hides_a_login(user, folder, module):
    program = (
        f"import os, {module}\n"
        "names = ('PREFECT_API_URL', 'PREFECT_API_AUTH_STRING', 'PREFECT_SERVER_ANALYTICS_ENABLED', 'DO_NOT_TRACK')\n"
        "print(*(os.environ.get(name) for name in names))"
    )
    known = {**user, "PREFECT_API_URL": "http://admin:word@127.0.0.1:9/api"}
    for name in ("PREFECT_SERVER_ANALYTICS_ENABLED", "DO_NOT_TRACK"):
        known.pop(name, None)
    done = python(known, folder, "-c", program)
    assert done.stdout.split() == ["http://127.0.0.1:9/api", "admin:word", "false", "1"], done.stderr
    program = f"import os, {module}; print(os.environ.get('PREFECT_HOME'))"
    assert python(user, folder, "-c", program).stdout.strip() == str(folder / ".prefect")


@pytest.mark.parametrize("nothing", [{}, {"PREFECT_HOME": ""}, {"PREFECT_API_URL": ""}])
def test_without_settings_of_the_users_all_stays_in_the_projects_folder(user, folder, nothing):
    assert home(user | nothing, folder) == str(folder / ".prefect")


@pytest.mark.parametrize("variable", ["PREFECT_API_URL", "PREFECT_PROFILE"])
def test_a_variable_of_the_users_leaves_prefect_where_it_is(user, folder, variable):
    assert home(user | {variable: "anything"}, folder) == "None"


def test_a_folder_of_the_users_stays(user, folder):
    assert home(user | {"PREFECT_HOME": "/elsewhere"}, folder) == "/elsewhere"


def test_a_profile_of_the_users_is_followed(user, folder):
    write_profile(user, "http://127.0.0.1:9/api")
    assert home(user, folder) == "None"
    program = "import flows, prefect.settings; print(prefect.settings.PREFECT_API_URL.value())"
    assert python(user, folder, "-c", program).stdout.strip() == "http://127.0.0.1:9/api"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")
def test_make_leaves_the_choice_to_the_flows(user, folder):
    (folder / "Makefile").write_text(f"include {CHECKOUT}/Makefile\nshow:\n\t@env\n")
    shown = subprocess.run(["make", "show"], env=user, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert "DO_NOT_TRACK=1" in shown
    assert "PREFECT_HOME" not in shown


def test_these_tests_follow_no_setting_of_the_developers(user, folder):
    write_profile(user, "http://127.0.0.1:9/api")
    program = "import tests.flows, prefect.settings as s; print(s.PREFECT_API_URL.value(), s.PREFECT_HOME.value())"
    for variables in ({}, {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_PROFILE": "mine"}):
        url, place = python(user | variables, folder, "-c", program).stdout.split()
        assert url == "None"
        assert not place.startswith((user["HOME"], str(folder)))


def page(variables, folder):
    return python(variables, folder, "-m", "flows.user_server")


def test_a_user_without_a_server_has_no_page(user, folder):
    done = page(user, folder)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_page_of_the_users_server_is_told_without_the_password(users_prefect, folder):
    done = page(users_prefect, folder)
    assert (done.returncode, done.stdout.strip()) == (0, PREFECT_API_URL.value().removesuffix("/api")), done.stderr


def test_the_users_server_may_be_named_by_a_profile(prefect_server, user, folder):
    write_profile(user, PREFECT_API_URL.value() + "/")
    done = page(user, folder)
    assert (done.returncode, done.stdout.strip()) == (0, PREFECT_API_URL.value().removesuffix("/api")), done.stderr


def assert_one_sentence(done):
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the Prefect server at ")
    assert "PREFECT_API_URL" in line
    assert "somebody" not in line
    assert "sec" not in line


NOBODY = "http://somebody:secret@127.0.0.1:9/api"


@pytest.mark.parametrize("module", ["flows.user_server", "stack.serve", "flows.pipeline"])
def test_a_server_that_does_not_answer_is_told_in_one_sentence(user, folder, module):
    assert_one_sentence(python(user | {"PREFECT_API_URL": NOBODY}, folder, "-m", module))


@pytest.mark.parametrize(
    "url",
    [
        "http://somebody:sec/ret@127.0.0.1:9/api",
        "http://somebody:secret@127.0.0.1:wrong/api",
        "somebody:secret@127.0.0.1:9/api",
        "nowhere",
    ],
)
def test_an_address_that_is_none_is_told_in_one_sentence(user, folder, url):
    assert_one_sentence(page(user | {"PREFECT_API_URL": url}, folder))


def test_who_answers_but_is_no_prefect_server_is_told(prefect_server, user, folder):
    done = page(user | {"PREFECT_API_URL": PREFECT_API_URL.value().removesuffix("/api")}, folder)
    assert_one_sentence(done)


def test_settings_that_prefect_cannot_read_are_told(user, folder):
    (folder / "prefect.toml").write_text("[api")
    done = python(user, folder, "-m", "stack.serve")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "prefect config view" in line
