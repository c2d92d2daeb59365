"""One task a stage; each runs its stage in a child process, and only words cross between them."""

import logging
import os
import re
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from dotenv import dotenv_values
from prefect import State, Task, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.exceptions import PrefectException

from diffusion_core.errors import Unavailable
from diffusion_core.runtime.child import run_child
from flows.automations import tell_promotion
from flows.checkout import Override
from flows.failure import StageFailed
from flows.transcript import Transcript, without_userinfo

RETRY_SECONDS = [10.0, 60.0]
# What waits for the network alone can hang there; a stage that computes is bounded by its budget in params.yaml.
NETWORK_SECONDS = timedelta(hours=12).total_seconds()

REMOTE = "DIFFUSION_DVC_REMOTE"
# What `python -m diffusion_core remote` writes for a store that is not Amazon's.
AWS_SETTINGS = Path(".dvc/aws.local")


def may_pass(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Whether trying again can help: a server did not answer, and nothing else was wrong."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed) and error.may_pass


def task_options(name: str, **more: Any) -> dict[str, Any]:
    """Return the options of a task of that name; `more` adds to them."""
    return {
        "name": name,
        "task_run_name": name,
        "cache_policy": NO_CACHE,
        "persist_result": False,
        "retries": len(RETRY_SECONDS),
        "retry_delay_seconds": RETRY_SECONDS,
        "retry_condition_fn": may_pass,
        **more,
    }


def dvc_task(stage: str) -> Task[[], None]:
    """Return the task of one stage of dvc.yaml."""

    @task(**task_options(stage))
    def reproduce() -> None:
        # What another machine has made of the same inputs is not made again.
        run_module(stage, ["dvc", "repro", "--single-item", *(["--pull"] if has_remote() else []), stage])

    return reproduce


def registry_task(stage: str, **options: Any) -> Task[[], None]:
    """Return the task of a stage that DVC does not know, because it changes MLflow and no file."""

    @task(**task_options(stage, timeout_seconds=NETWORK_SECONDS, **options))
    def run() -> None:
        run_module(stage, ["diffusion_core", stage])

    return run


@task(**task_options("ingest", timeout_seconds=NETWORK_SECONDS))
def ingest(refresh: bool, overrides: Sequence[Override]) -> None:
    """Bring the images in, anew if they are to be refreshed, after setting what the run wants otherwise."""
    settings = [argument for override in overrides for argument in ("--set-param", override)]
    command = ["exp", "run", *settings] if settings else ["repro"]
    run_module("ingest", ["dvc", *command, "--single-item", *(["--force"] if refresh else []), "ingest"])


@task(**task_options("pull", timeout_seconds=NETWORK_SECONDS))
def pull() -> None:
    """Bring what other machines have made: the outputs that dvc.lock names, and what was made of which inputs."""
    if not has_remote():
        get_run_logger().info(f"outputs are kept on this machine alone, because {REMOTE} names no other place")
        return
    run_module("pull", ["diffusion_core", "remote"])
    if any(Path(output).exists() for output in ("data/raw", "models/model.safetensors")):
        # A checkout that lasts has what it made, and perhaps what a crash has kept from DVC.
        get_run_logger().info("what lies in this checkout already stays")
        return
    _share("pull", ["dvc", "pull", "--run-cache", "--allow-missing"])


@task(**task_options("push", timeout_seconds=NETWORK_SECONDS))
def push() -> None:
    """Give other machines what was made here."""
    if has_remote():
        _share("push", ["dvc", "push", "--run-cache"])


def _share(name: str, command: Sequence[str]) -> None:
    """Run a command of DVC's that speaks to the remote; if it fails, the store is asked in our own words why.

    Raises:
        StageFailed: it failed.
    """
    try:
        run_module(name, command)
    except StageFailed:
        run_module(name, ["diffusion_core", "remote"])
        raise


def has_remote() -> bool:
    """Whether the environment names a place where machines share outputs.

    The address is no secret, so it is never a mounted one.
    """
    return bool(os.environ.get(REMOTE) or dotenv_values(".env").get(REMOTE))


def run_module(stage: str, module: Sequence[str]) -> None:
    """Run a Python module with its arguments in a child process; its output goes to the run's log.

    Raises:
        StageFailed: the module ended with another code than 0.
    """
    transcript = Transcript(get_run_logger().info)
    # `ingest` asks the user's own bucket, by the user's own file, and DVC shares nothing meanwhile.
    shares = module[0] == "dvc" and stage != "ingest"
    code = run_child([sys.executable, "-m", *module], child_environment(shares), transcript.feed)
    transcript.close()
    if code == 0:
        return
    trouble = transcript.trouble or ""
    if transcript.error is not None:
        raise StageFailed(
            f"{stage}: {transcript.error}",
            is_mistake=True,
            may_pass=_stage_code(code, trouble) == Unavailable.exit_code,
        )
    if "is busy" in trouble or "Unable to acquire lock" in trouble:
        raise StageFailed(f"{stage}: another DVC command works in this folder; wait until it ends", is_mistake=True)
    raise StageFailed(f"{stage} ended with exit code {code}; its log says why. {trouble}".rstrip())


def _stage_code(code: int, trouble: str) -> int:
    """Return the exit code of a stage, which DVC keeps to itself but for its message."""
    told = re.search(r"exited with (\d+)", trouble)
    return int(told[1]) if told else code


def child_environment(shares: bool) -> dict[str, str]:
    """Return the variables of a stage's process; `shares` where it is a DVC that may speak to the remote."""
    interpreter = str(Path(sys.executable).parent)
    variables = {
        **os.environ,
        # DVC runs the stages by `python`, which must be this one also when nobody activated its environment.
        "PATH": os.pathsep.join([interpreter, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
    }
    if runtime.flow_run.id is not None:
        variables["PREFECT__FLOW_RUN_ID"] = str(runtime.flow_run.id)
    if shares and AWS_SETTINGS.exists():
        # DVC would take this file by itself, unless the user has exported the variable.
        variables["AWS_CONFIG_FILE"] = str(AWS_SETTINGS.absolute())
    return variables


def _presentable(record: logging.LogRecord) -> bool:
    """Leave out the traceback of a stage that failed, which happened in the child, and of a server that is down.

    Prefect's errors hold the server's address, and that may hold a password.
    """
    if record.exc_info and isinstance(record.exc_info[1], StageFailed | PrefectException | httpx.HTTPError):
        record.exc_info = None
    record.msg, record.args = without_userinfo(record.getMessage()), ()
    return True


for _logger in ("prefect.task_runs", "prefect.flow_runs"):
    logging.getLogger(_logger).addFilter(_presentable)

prepare = dvc_task("prepare")
reference = dvc_task("reference")
train = dvc_task("train")
sample = dvc_task("sample")
evaluate = dvc_task("evaluate")
publish = registry_task("publish")
promote = registry_task("promote", on_completion=[tell_promotion])
