"""One task per stage; each runs its stage in a child process."""

import errno
import logging
import math
import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from dotenv import dotenv_values
from prefect import State, Task, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException

from diffusion_core.config.environment import load_environment
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.stages.moved import add_moved, bytes_between, network_bytes
from diffusion_core.supervision.child import TimeIsUp, killed, run_child
from flows.automations import notify_decision
from flows.checkout import Override, committer
from flows.failure import StageFailed
from flows.progress import ProgressBar
from flows.transcript import Transcript, without_userinfo

RETRY_SECONDS = [10.0, 60.0]
# Timeout of tasks that mostly use the network; the budget in params.yaml limits stages that compute.
NETWORK_SECONDS = timedelta(hours=12).total_seconds()

REMOTE, HOURS = "DIFFUSION_DVC_REMOTE", "DIFFUSION_MAX_HOURS"
# How the system says in DVC's messages that a disk is full or read-only.
DISK_ERRORS = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EROFS)))
# Written by `python -m diffusion_core remote` for a store that is not Amazon's.
AWS_SETTINGS = Path(".dvc/aws.local")


def is_transient(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Return whether a task failed with a transient error, so that Prefect retries it."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StageFailed) and error.is_transient


def task_options(name: str, **more: Any) -> dict[str, Any]:
    """Return the options of the task `name`, with the additional options `more`."""
    return {
        "name": name,
        "task_run_name": name,
        "cache_policy": NO_CACHE,
        "persist_result": False,
        "retries": len(RETRY_SECONDS),
        "retry_delay_seconds": RETRY_SECONDS,
        "retry_condition_fn": is_transient,
        **more,
    }


def dvc_task(stage: str) -> Task[[], None]:
    """Return the task of one stage of dvc.yaml."""

    @task(**task_options(stage))
    def reproduce() -> None:
        # --pull fetches the results of other machines for the same inputs.
        run_module(stage, ["dvc", "repro", "--single-item", *(["--pull"] if has_remote() else []), stage])

    return reproduce


def registry_task(stage: str, **options: Any) -> Task[[], None]:
    """Return the task of a stage that is not in dvc.yaml, because its output is in MLflow."""

    @task(**task_options(stage, timeout_seconds=NETWORK_SECONDS, **options))
    def run() -> None:
        run_module(stage, ["diffusion_core", stage])

    return run


@task(**task_options("ingest", timeout_seconds=NETWORK_SECONDS))
def ingest(refresh: bool, overrides: Sequence[Override]) -> None:
    """Set the overrides and run the stage `ingest`, with --force if `refresh`."""
    settings = [argument for override in overrides for argument in ("--set-param", override)]
    command = ["exp", "run", *settings] if settings else ["repro"]
    run_module("ingest", ["dvc", *command, "--single-item", *(["--force"] if refresh else []), "ingest"])


@task(**task_options("pull", timeout_seconds=NETWORK_SECONDS))
def pull() -> None:
    """Pull the outputs in dvc.lock and DVC's run cache, unless the checkout has outputs already."""
    if not has_remote():
        get_run_logger().info(f"outputs are kept on this machine alone, because {REMOTE} names no other place")
        return
    run_module("pull", ["diffusion_core", "remote"])
    if any(Path(output).exists() for output in ("data/raw", "models/model.safetensors")):
        # A persistent checkout has its own outputs, and after a crash possibly some that DVC does not have.
        get_run_logger().info("what lies in this checkout already stays")
        return
    _share("pull", ["dvc", "pull", "--run-cache", "--allow-missing"])


@task(**task_options("push", timeout_seconds=NETWORK_SECONDS))
def push() -> None:
    """Push the outputs and DVC's run cache for other machines."""
    if has_remote():
        _share("push", ["dvc", "push", "--run-cache"])


@task(**task_options("verify", timeout_seconds=NETWORK_SECONDS))
def verify(repair: bool) -> None:
    """Run `diffusion verify`, which may read the remote."""
    if has_remote():
        run_module("verify", ["diffusion_core", "remote"])
    run_module("verify", ["diffusion_core", "verify", *(["--repair"] if repair else [])])


def _share(name: str, command: Sequence[str]) -> None:
    """Run a DVC command that uses the remote; if it fails, check the store for a clearer error message.

    Raises:
        StageFailed: the command failed.
    """
    try:
        run_module(name, command)
    except StageFailed:
        run_module(name, ["diffusion_core", "remote"])
        raise


def has_remote() -> bool:
    """Return whether DIFFUSION_DVC_REMOTE is set.

    The address is not a secret, so mounted secrets are not read.
    """
    return bool(os.environ.get(REMOTE) or dotenv_values(".env").get(REMOTE))


def run_module(stage: str, module: Sequence[str]) -> None:
    """Run a Python module with its arguments in a child process, log its output, and record the bytes that it moved.

    Raises:
        StageFailed: the exit code of the module is not 0, or the hours of the run are used up.
    """
    logger, progress = get_run_logger(), ProgressBar()

    def tell(line: str) -> None:
        logger.info(line)
        progress.take(line)

    transcript = Transcript(tell)
    # `ingest` uses the user's bucket with the user's AWS configuration, and DVC does not use the remote meanwhile.
    shares = module[0] == "dvc" and stage != "ingest"
    environment = child_environment(shares) | (committer() if module[:2] == ["dvc", "exp"] else {})
    hours, seconds = _hours_left()
    before = network_bytes()
    try:
        code = run_child([sys.executable, "-m", *module], environment, transcript.feed, seconds)
    except TimeIsUp:
        raise StageFailed(
            f"{stage}: the run has used the {hours:g} hours of {HOURS}: set more, or start it again, which resumes",
            is_mistake=True,
        ) from None
    finally:
        if runtime.flow_run.id is not None:
            add_moved(str(runtime.flow_run.id), stage, bytes_between(before, network_bytes()))
    transcript.close()
    if code == 0:
        progress.finish()
        return
    dvc_error = transcript.dvc_error or ""
    if transcript.error is not None:
        raise StageFailed(
            f"{stage}: {transcript.error}",
            is_mistake=True,
            is_transient=_stage_code(code, dvc_error) == Unavailable.exit_code,
        )
    if "is busy" in dvc_error or "Unable to acquire lock" in dvc_error:
        raise StageFailed(f"{stage}: another DVC command works in this folder; wait until it ends", is_mistake=True)
    if "is not a git repository" in dvc_error:
        raise StageFailed(f"{stage}: {dvc_error}, which DVC needs: say `git init`, and commit", is_mistake=True)
    if any(words in dvc_error for words in DISK_ERRORS):
        raise StageFailed(
            f"{stage}: the disk refuses DVC ({dvc_error}): make room or correct its rights", is_mistake=True
        )
    if (killed_by := killed(_stage_code(code, dvc_error))) is not None:
        raise StageFailed(f"{stage} {killed_by}", is_mistake=True)
    raise StageFailed(f"{stage} ended with exit code {code}; its log says why. {dvc_error}".rstrip())


def _hours_left() -> tuple[float, float]:
    """Return the hours that a run may take, and the seconds that this one has left.

    Raises:
        StageFailed: a variable of the environment is wrong.
    """
    try:
        hours = load_environment().max_hours or math.inf
    except UserError as error:
        raise StageFailed(str(error), is_mistake=True) from None
    context = FlowRunContext.get()
    passed = datetime.now(UTC) - context.start_time if context is not None else timedelta()
    return hours, 3600.0 * hours - passed.total_seconds()


def _stage_code(code: int, dvc_error: str) -> int:
    """Return the exit code of a stage, negative for a signal, which DVC reports only in its message."""
    found = re.search(r"exited with (-?\d+)", dvc_error)
    return int(found[1]) if found else code


def child_environment(shares: bool) -> dict[str, str]:
    """Return the variables of a stage's process; `shares` is for a DVC command that may use the remote."""
    interpreter = str(Path(sys.executable).parent)
    variables = {
        **os.environ,
        # DVC runs stages with `python`, which must be this interpreter even if its environment is not activated.
        "PATH": os.pathsep.join([interpreter, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
    }
    if runtime.flow_run.id is not None:
        variables["PREFECT__FLOW_RUN_ID"] = str(runtime.flow_run.id)
    if shares and AWS_SETTINGS.exists():
        # An exported variable would take precedence over DVC's configuration.
        variables["AWS_CONFIG_FILE"] = str(AWS_SETTINGS.absolute())
    return variables


def _presentable(record: logging.LogRecord) -> bool:
    """Remove the traceback of a failed stage or of a server error from a log record, and passwords of addresses.

    The failure of a stage happened in the child process. Prefect's errors include the server's address and its
    password.
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
check = registry_task("check")
publish = registry_task("publish")
promote = registry_task("promote", on_completion=[notify_decision])
report = registry_task("report")
