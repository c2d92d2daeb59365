"""The tracking store: whether it answers, runs that seem to train and do not, and what waits for it."""

import time
from collections.abc import Iterator
from http.client import HTTPException
from importlib.metadata import version
from urllib.parse import unquote, urlsplit

import httpx

from diffusion_core.address import without_userinfo
from diffusion_core.config.environment import Environment
from diffusion_core.doctor.diagnosis import Diagnosis, of_error, ok, warning
from diffusion_core.errors import UserError
from diffusion_core.lineage.checkpoints import LOCK
from diffusion_core.lineage.outbox import Outbox
from diffusion_core.locks import is_held
from diffusion_core.registry.connection import NoStore, answering, connect, is_server, tracking_uri
from diffusion_core.registry.tracking import waiting
from diffusion_core.registry.unfinished import Unfinished, unfinished_runs

SECONDS_TO_ANSWER = 3.0
# A training logs its use of the machine every ten seconds.
SILENCE_HOURS = 1.0


def tracking_store(environment: Environment) -> Iterator[Diagnosis]:
    """Check that the store answers and knows the password, and that its RUNNING runs have a process."""
    uri = tracking_uri(environment)
    shown = without_userinfo(uri)
    try:
        client = connect(environment, may_create=False)
        yield ok(f"the tracking store {shown} answers")
        if is_server(uri):
            yield from _version(uri)
        with answering(environment):
            runs = list(unfinished_runs(client, environment))
    except NoStore:
        yield ok(f"the tracking store {shown} does not exist yet: the first training makes it")
        return
    except UserError as error:
        yield of_error(error)
        return
    queues = {outbox.key: outbox for outbox in Outbox.all(environment.checkpoints)}
    for run in runs:
        yield _unfinished(run, queues.get(run.key or ""))


def queues(environment: Environment) -> Iterator[Diagnosis]:
    """Check whether something waits for the tracking store on this machine."""
    try:
        counts = waiting(environment)
    except UserError as error:
        yield of_error(error)
        return
    for folder, count in counts.items():
        if is_held(folder.parent / LOCK):
            yield ok(f"{count:,} entries wait in {folder}, and the training that runs sends them")
        else:
            yield warning(f"{count:,} entries wait for the tracking store in {folder}", "run `diffusion replay`")
    if not counts:
        yield ok("nothing waits for the tracking store")


def _unfinished(run: Unfinished, queue: Outbox | None) -> Diagnosis:
    hours = (time.time() - run.heard) / 3600
    if queue is not None:
        if is_held(queue.folder.parent / LOCK):
            return ok(f"the run {run.name} trains on this machine")
        return warning(
            f"the run {run.name} is RUNNING in MLflow, and its process has ended",
            "run `diffusion replay`, which ends it",
        )
    if hours < SILENCE_HOURS:
        return ok(f"the run {run.name} trains on another machine")
    return warning(
        f"the run {run.name} is RUNNING in MLflow, and has logged nothing for {hours:.0f} hours",
        f"if its machine is lost, end it in Python: `mlflow.MlflowClient().set_terminated('{run.run_id}', 'KILLED')`",
    )


def _version(uri: str) -> Iterator[Diagnosis]:
    """Compare the server's version with that of the installed MLflow."""
    parts = urlsplit(uri)
    login = (unquote(parts.username or ""), unquote(parts.password or "")) if parts.username else None
    try:
        answer = httpx.get(f"{without_userinfo(uri).rstrip('/')}/version", auth=login, timeout=SECONDS_TO_ANSWER)
    except (httpx.HTTPError, HTTPException):
        return
    there, here = answer.text.strip(), version("mlflow")
    if answer.is_success and there.split(".")[:2] != here.split(".")[:2] and there[:1].isdigit():
        yield warning(
            f"the tracking server is MLflow {there[:20]}, and {here} is installed here", "install one of both"
        )
