import json
import os
import signal
import subprocess
import sys

import pytest

from diffusion_core.config.environment import Environment
from diffusion_core.doctor.dvc import cache_folder, checksums, dvc_config, dvc_locks
from diffusion_core.stages import remote
from tests.doctor.findings import is_silent, worst
from tests.storage.conftest import ACCESS, SECRET

ENVIRONMENT = Environment()


@pytest.fixture(autouse=True)
def dvc(folder):
    (folder / ".dvc/tmp").mkdir(parents=True)
    return folder / ".dvc"


def run_python(code):
    return subprocess.Popen(
        [sys.executable, "-c", code, "dvc"], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("hardlink", [False, True])
def test_a_lock_of_a_command_that_died_is_found_where_it_stays(dvc, hardlink):
    code = f"from dvc.lock import make_lock; lock = make_lock('.dvc/tmp/lock', '.dvc/tmp', hardlink_lock={hardlink})"
    with run_python(f"{code}; lock.lock(); print(flush=True); input()") as process:
        process.stdout.readline()
        (found,) = dvc_locks(ENVIRONMENT)
        assert found.sentence.startswith(f"a DVC command works here (process {process.pid}")
        process.send_signal(signal.SIGKILL)
    assert (dvc / "tmp/lock").exists()
    if hardlink:
        assert "the lock of a DVC command that died" in worst(dvc_locks, ENVIRONMENT).sentence
        assert (dvc / "tmp/lock").exists()
    else:
        assert is_silent(dvc_locks, ENVIRONMENT)


def test_a_path_that_a_dead_command_has_locked_is_found_and_worse_if_its_number_is_anothers(dvc, sleeping):
    code = (
        "import os; from dvc.fs import localfs; from dvc.rwlock import rwlock\n"
        "with rwlock('.dvc/tmp', localfs, 'dvc repro', [], [os.path.abspath('models')], False): os.kill(os.getpid(), 9)"
    )
    run_python(code).wait()
    found = worst(dvc_locks, ENVIRONMENT)
    assert (found.verdict, "the next DVC command drops it" in found.remedy) == ("warning", True)
    content = json.loads((dvc / "tmp/rwlock").read_text())
    for info in content["write"].values():
        info["pid"] = sleeping
    (dvc / "tmp/rwlock").write_text(json.dumps(content))
    found = worst(dvc_locks, ENVIRONMENT)
    assert (found.verdict, f"another process has its number {sleeping}" in found.sentence) == ("problem", True)


def rwlock(number):
    return f'{{"write": {{"a": {{"pid": {number}, "cmd": "dvc repro"}}}}}}'


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"write": {"a": {}}}', rwlock("99999999999"), rwlock("Infinity"), rwlock("null")]
)
def test_a_damaged_file_of_locks_is_found(dvc, content):
    (dvc / "tmp/rwlock").write_text(content)
    assert "is damaged" in worst(dvc_locks, ENVIRONMENT).sentence


def test_a_number_that_no_process_can_have_is_that_of_a_dead_one(dvc):
    (dvc / "tmp/rwlock").write_text(rwlock("-5"))
    assert "which died (process -5)" in worst(dvc_locks, ENVIRONMENT).sentence
    (dvc / "tmp/rwlock").unlink()
    (dvc / "tmp/lock").write_bytes(b"\xff")
    assert is_silent(dvc_locks, ENVIRONMENT)


def test_a_configuration_without_sections_is_found(dvc):
    (dvc / "config.local").write_text("remote = canary\ncache = canary\n")
    found = worst(dvc_config, Environment(dvc_remote="s3://outputs/of/us"))
    assert (found.sentence, "canary" in found.remedy) == (".dvc/config.local is not a configuration of DVC", False)
    assert cache_folder(ENVIRONMENT) == dvc.relative_to(dvc.parent) / "cache"


def test_without_locks_there_is_nothing_to_say(dvc):
    assert is_silent(dvc_locks, ENVIRONMENT)
    (dvc / "tmp/rwlock").write_text('{"write": {}, "read": {}}')
    assert is_silent(dvc_locks, ENVIRONMENT)


def test_a_configuration_that_is_not_the_environments_is_found(server, admin, dvc):
    admin.create_bucket(Bucket="configured")
    environment = Environment(
        dvc_remote="s3://configured/of/us/", s3_endpoint=server, s3_access_key=ACCESS, s3_secret_key=SECRET
    )
    assert "does not use" in worst(dvc_config, environment).sentence
    remote.run(environment)
    assert is_silent(dvc_config, environment)
    found = worst(dvc_config, environment.model_copy(update={"s3_secret_key": environment.s3_access_key}))
    assert found.sentence.endswith("for secret_access_key")
    assert ACCESS not in found.sentence


def test_checksums_that_another_store_may_refuse_are_found(monkeypatch):
    environment = Environment(s3_endpoint="http://127.0.0.1:1", dvc_remote="s3://outputs/of/us")
    monkeypatch.delenv("AWS_CONFIG_FILE")
    assert is_silent(checksums, environment)
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    assert "AWS_REQUEST_CHECKSUM_CALCULATION" in worst(checksums, environment).sentence
    assert not [*checksums(Environment())]
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    assert "AWS_CONFIG_FILE is another file" in worst(checksums, environment).sentence


def test_the_cache_is_where_dvc_has_it(dvc):
    assert cache_folder(ENVIRONMENT) == dvc.relative_to(dvc.parent) / "cache"
    (dvc / "config").write_text("[cache]\n    dir = ../../shared\n")
    assert cache_folder(ENVIRONMENT).resolve() == dvc.parent.parent / "shared"
