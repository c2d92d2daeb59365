"""Passwords that protect nothing do not start the stack."""

import subprocess

import pytest
import yaml

from tests.docker.stack import EXAMPLE, FOLDER, GOOD, PASSWORDS, SERVICES


def guard(*names, **variables):
    """Run the guard as its container does, with no other variables."""
    path = {"PATH": "/usr/bin:/bin"}
    command = ["sh", FOLDER / "guard.sh", *names]
    return subprocess.run(command, env={**path, **variables}, capture_output=True, text=True, check=False)


def test_good_passwords_pass_in_silence():
    done = guard(*PASSWORDS, **GOOD)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "is not set"),
        ("", "is not set"),
        ("change-me", "placeholder"),
        ("change-me-change-me", "placeholder"),
        ("eleven-char", "shorter than 12"),
        ("with space in it", "characters"),
        ("percent%percent", "characters"),
        ("quote'quote'quote", "characters"),
        ("dollar$(id)dollar", "characters"),
        ("line\nline\nline\nline", "characters"),
        ("ümlautümlautümlaut", "characters"),
    ],
)
def test_a_weak_password_ends_it_with_one_sentence_and_code_2(value, why):
    done = guard("ONE", "OTHER", OTHER=GOOD[PASSWORDS[0]], **({} if value is None else {"ONE": value}))
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("error: ONE ")
    assert why in sentence
    assert "docker/.env" in sentence


def test_all_weak_ones_are_told_at_once_and_no_value_is_shown():
    done = guard("ONE", "OTHER", ONE="short-one", OTHER="other short one")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2
    assert "short-one" not in done.stderr
    assert "other short" not in done.stderr


def test_the_guard_is_shown_every_password_of_the_example():
    served = yaml.safe_load((FOLDER / "compose.serve.yaml").read_text(encoding="utf-8"))["services"]
    guards = [SERVICES["guard"], served["model-guard"]]
    shown = [name for each in guards for name in each["command"][1:]]
    assert sorted(shown) == sorted(PASSWORDS) == sorted(name for each in guards for name in each["environment"])


def test_every_placeholder_of_the_example_is_refused():
    placeholders = dict.fromkeys(PASSWORDS, "change-me")
    assert len(guard(*PASSWORDS, **placeholders).stderr.splitlines()) == len(PASSWORDS) == EXAMPLE.count("=change-me\n")


def test_the_command_in_the_example_fills_in_passwords_that_pass(tmp_path):
    (command,) = (line.removeprefix("# ") for line in EXAMPLE.splitlines() if "openssl" in line)
    (tmp_path / ".env.example").write_text(EXAMPLE)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    made = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines() if line[:1].isupper())
    assert len({made[name] for name in PASSWORDS}) == len(PASSWORDS)
    assert guard(*PASSWORDS, **made).returncode == 0
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
