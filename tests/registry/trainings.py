"""Tracked trainings and their queues, as a project's folder and its store have them."""

import time
from pathlib import Path

from diffusion_core.config.environment import Environment
from diffusion_core.lineage.dataset_version import DatasetVersion
from diffusion_core.lineage.outbox import Outbox
from diffusion_core.registry import tracking
from diffusion_core.registry.connection import connect
from diffusion_core.registry.delivery import Delivery
from diffusion_core.registry.sending import Sender, find_run
from diffusion_core.registry.tracking import training_run

PARAMS = {"train": {"seed": 1, "network": {"dim_mults": [1, 2], "dropout": 0.0}}}
DATASET = DatasetVersion(name="data/prepared", digest="d" * 64, md5="5" * 32 + ".dir", source="data/prepared")
FOLDER = Path(".checkpoints/one/outbox")


def nothing(_):
    pass


def track(environment, body=nothing, *, folder=FOLDER, params=PARAMS, dataset=DATASET, tags=None):
    """Run a training's tracking; return the id of its run."""
    with training_run(environment, folder, params=params, dataset=dataset, tags=tags or {"git_commit": "c"}) as run:
        body(run)
    return find_run(connect(environment), run.key)


def stored(environment, run_id):
    return connect(environment).get_run(run_id)


def history(environment, run_id, name):
    return [(each.step, each.value) for each in connect(environment).get_metric_history(run_id, name)]


def pictures(environment, run_id):
    """Return the steps of a run's images, each of which has its preview."""
    files = [file.path for file in connect(environment).list_artifacts(run_id, "images")]
    images, previews = (
        sorted(int(name.split("+")[2]) for name in files if name.endswith(end)) for end in (".png", ".webp")
    )
    assert images == previews
    return images


def waiting(name, *entries, finished=True):
    """The queue of another training, beside the one in FOLDER, which has sent nothing."""
    outbox = Outbox(Path(".checkpoints") / name / "outbox")
    run = tracking.Run(outbox, Delivery(Environment(), []))
    run.start({}, DATASET, {})
    for values, step in entries:
        run.metrics(values, step)
    if finished:
        run.finish("FINISHED")
    return outbox


def deliver(environment, outbox):
    return list(Sender(connect(environment), environment, outbox).send())


def is_sent(outbox):
    end = time.monotonic() + 20.0
    while not outbox.is_empty() and time.monotonic() < end:
        time.sleep(0.02)
    return outbox.is_empty()
