"""One task a stage; each runs its stage in a child process, and only words cross between them."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from prefect import Task, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE

from flows.child import run_child
from flows.transcript import Transcript


class StageFailed(Exception):
    """A stage did not succeed; the message is the one sentence it left behind.

    Attributes:
        is_mistake: it was a mistake of the user's, who can mend it.
    """

    def __init__(self, sentence: str, is_mistake: bool) -> None:
        super().__init__(sentence)
        self.is_mistake = is_mistake


def dvc_task(stage: str) -> Task[..., None]:
    """Return the task of one stage of dvc.yaml; its argument is more options of `dvc repro`."""

    @task(name=stage, task_run_name=stage, cache_policy=NO_CACHE, persist_result=False)
    def reproduce(options: Sequence[str] = ()) -> None:
        run_stage(stage, ["dvc", "repro", "--single-item", *options, stage])

    return reproduce


def registry_task(stage: str) -> Task[[], None]:
    """Return the task of a stage that DVC does not know, because it changes MLflow and no file."""

    @task(name=stage, task_run_name=stage, cache_policy=NO_CACHE, persist_result=False)
    def run() -> None:
        run_stage(stage, ["diffusion_core", stage])

    return run


def run_stage(stage: str, module: Sequence[str]) -> None:
    """Run a Python module with its arguments in a child process; its output goes to the run's log.

    Raises:
        StageFailed: the module ended with another code than 0.
    """
    transcript = Transcript(get_run_logger().info)
    code = run_child([sys.executable, "-m", *module], child_environment(), transcript.feed)
    transcript.close()
    if code == 0:
        return
    if transcript.error is not None:
        raise StageFailed(f"{stage}: {transcript.error}", is_mistake=True)
    trouble = transcript.trouble or ""
    if "is busy" in trouble or "Unable to acquire lock" in trouble:
        raise StageFailed(f"{stage}: another DVC command works in this folder; wait until it ends", is_mistake=True)
    raise StageFailed(f"{stage} ended with exit code {code}; its log says why. {trouble}".rstrip(), is_mistake=False)


def child_environment() -> dict[str, str]:
    """Return the variables of a stage's process."""
    interpreter = str(Path(sys.executable).parent)
    variables = {
        **os.environ,
        # DVC runs the stages by `python`, which must be this one also when nobody activated its environment.
        "PATH": os.pathsep.join([interpreter, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
    }
    if runtime.flow_run.id is not None:
        variables["PREFECT__FLOW_RUN_ID"] = str(runtime.flow_run.id)
    return variables


def _without_traceback(record: logging.LogRecord) -> bool:
    """Leave out the traceback of a stage that failed: what matters happened in the child."""
    if record.exc_info and isinstance(record.exc_info[1], StageFailed):
        record.exc_info = None
    return True


for _logger in ("prefect.task_runs", "prefect.flow_runs"):
    logging.getLogger(_logger).addFilter(_without_traceback)

ingest = dvc_task("ingest")
prepare = dvc_task("prepare")
reference = dvc_task("reference")
train = dvc_task("train")
sample = dvc_task("sample")
evaluate = dvc_task("evaluate")
publish = registry_task("publish")
promote = registry_task("promote")
