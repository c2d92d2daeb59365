"""The training run in MLflow: parameters, data, metrics by step, and final status.

What is logged goes to a queue on disk, and a thread sends it. So no server can delay a training, and nothing is lost:
what a server does not take is sent by the next training with these checkpoints, or by `diffusion replay`.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from diffusion_core.address import without_userinfo
from diffusion_core.config.environment import Environment
from diffusion_core.errors import Unavailable
from diffusion_core.lineage.dataset_version import DatasetVersion
from diffusion_core.lineage.identity import flattened
from diffusion_core.lineage.outbox import Outbox
from diffusion_core.lineage.queue_errors import QueueError, UnreadableNow, accessing
from diffusion_core.locks import Locked
from diffusion_core.registry.connection import answering, connect, sqlite_file, store_name, tracking_uri
from diffusion_core.registry.delivery import Delivery
from diffusion_core.registry.sending import Sender
from diffusion_core.registry.system_metrics import system_metrics

# Seconds that a training waits for a store, in all. A new SQLite file takes seconds to be made.
PATIENCE_SERVER, PATIENCE_SQLITE = 2.0, 60.0

_logger = logging.getLogger(__name__)


class Run:
    """An open run. Its methods write to a queue on disk, and return at once.

    Args:
        outbox: the queue.
        delivery: the thread that sends it.

    Attributes:
        key: the queue's key, by which `publish` finds the run.
    """

    def __init__(self, outbox: Outbox, delivery: Delivery) -> None:
        self.key = outbox.key
        self._outbox = outbox
        self._delivery = delivery
        # A resumed training repeats its last steps.
        self._last_steps = outbox.last_steps()
        # The store may have lost these, so `metrics` logs them again.
        self._cleared_steps = outbox.cleared_steps()

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of one step, without those that were logged before a restart."""
        new = {name: float(value) for name, value in values.items() if step > self._last_steps.get(name, -1)}
        if new:
            self._last_steps |= dict.fromkeys(new, step)
            self._append({"kind": "metrics", "values": new, "step": step})

    def next_step(self, prefix: str) -> int:
        """Return the step after the last of the metrics with this prefix."""
        known = (*self._last_steps.items(), *self._cleared_steps.items())
        return 1 + max((step for name, step in known if name.startswith(prefix)), default=-1)

    def image(self, image: npt.NDArray[np.uint8], key: str, step: int) -> None:
        """Log an image, uint8 (H, W, C) with 1, 3 or 4 channels; MLflow shows the images of a key as a series."""
        self._outbox.append_image(image, {"kind": "image", "key": key, "step": step, "time": _now()})
        self._delivery.wake()

    def text(self, content: str, file: str) -> None:
        """Log a text as an artifact."""
        self._append({"kind": "text", "content": content, "file": file})

    def tag(self, key: str, value: str) -> None:
        """Set a tag."""
        self._append({"kind": "tag", "key": key, "value": value})

    def start(self, params: Mapping[str, str], dataset: DatasetVersion, tags: Mapping[str, str]) -> None:
        """Open the run."""
        self._append({"kind": "start", "params": params, "dataset": asdict(dataset), "tags": tags})

    def finish(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        self._append({"kind": "end", "status": status})

    def _append(self, entry: dict[str, object]) -> None:
        self._outbox.append({**entry, "time": _now()})
        self._delivery.wake()


@contextmanager
def training_run(
    environment: Environment,
    folder: Path,
    *,
    params: Mapping[str, object],
    dataset: DatasetVersion,
    tags: Mapping[str, str],
) -> Iterator[Run]:
    """Open a run for the block: a new one, or that of the queue in `folder`, which resumes.

    The final status is FINISHED, KILLED after SystemExit or KeyboardInterrupt, or FAILED after other exceptions. A run
    that replaces one that the store has lost has the tag `continues_missing_run`. Queues beside `folder`, of other
    trainings with this store and experiment, are sent too, and those of killed processes are ended first.

    Args:
        environment: the environment, with store and experiment.
        folder: of the queue, in the folder of the training's checkpoints.
        params: parameters, logged with dotted names (`train.network.dim`).
        dataset: the training data, logged as an input.
        tags: tags of the run.

    Raises:
        UserError: the store refuses this user, or its experiment cannot be used.
    """
    outbox = Outbox(folder)
    outbox.cut_torn_line()
    store = store_name(environment)
    if not (outbox.is_empty() or outbox.is_for(store)):
        _logger.warning("what waits in %s for %s goes to %s now", folder, outbox.store, store)
    outbox.set_store(store)
    is_new = next(outbox.entries(), None) is None
    delivery = Delivery(environment, [outbox, *_others(outbox, store)])
    run = Run(outbox, delivery)
    run.start(flattened(params), dataset, tags)
    delivery.start()
    patience = PATIENCE_SERVER if sqlite_file(tracking_uri(environment)) is None else PATIENCE_SQLITE
    patience = delivery.wait_for(outbox, patience)
    if delivery.refusal is not None:
        if is_new:
            # Nothing was trained, so there is nothing to keep.
            with suppress(Locked), outbox.sending():
                outbox.clear()
        raise delivery.refusal
    status = "FAILED"
    try:
        with system_metrics(run.metrics, run.next_step("system/")):
            yield run
        status = "FINISHED"
    except (SystemExit, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        run.finish(status)
        delivery.wait_for(outbox, patience)
        _conclude(outbox, environment)


def _others(own: Outbox, store: str) -> list[Outbox]:
    """Return the queues of the other trainings that this store gets; end those of killed processes."""
    others = []
    for other in Outbox.all(own.folder.parent.parent):
        try:
            if other.folder != own.folder:
                end_abandoned(other)
                if other.is_for(store):
                    others.append(other)
        except QueueError as error:
            _logger.warning("%s", error)
    return others


def replay(environment: Environment, any_store: bool = False) -> int:
    """Send what earlier trainings could not send to this store and experiment; return the number of entries.

    Args:
        environment: the environment, with store and experiment.
        any_store: whether to send here also what waits for another store or experiment. This store then gets the
            whole queue, also what the other one has taken of it.

    Raises:
        QueueError: a queue cannot be sent; all others were.
        Unavailable: the store does not answer.
        UserError: the store refuses this user, or its experiment cannot be used.
    """
    count, errors = 0, []
    for outbox in Outbox.all(environment.checkpoints):
        try:
            # What another process sends now needs no second one.
            with suppress(Locked):
                count += _replay(outbox, environment, any_store)
        except QueueError as error:
            _logger.warning("%s", error)
            errors.append(error)
    if errors:
        raise errors[0]
    return count


def waiting(environment: Environment) -> dict[Path, int]:
    """Return the number of entries that wait for a tracking store, by the folder of their queue.

    Raises:
        QueueError: a queue cannot be read.
    """
    counts = {outbox.folder: outbox.count_unsent() for outbox in Outbox.all(environment.checkpoints)}
    return {folder: count for folder, count in counts.items() if count}


def replay_training(environment: Environment, key: str) -> None:
    """Send what a training could not send to this store and experiment, because publication needs its run.

    Args:
        environment: the environment, with store and experiment.
        key: the key of the training's queue.

    Raises:
        QueueError: the queue cannot be sent.
        Unavailable: the store does not answer, or another process sends the queue now.
        UserError: the store refuses this user, or its experiment cannot be used.
    """
    unknown: list[UnreadableNow] = []
    for outbox in Outbox.all(environment.checkpoints):
        try:
            is_wanted = outbox.key == key
        except QueueError as error:
            _logger.warning("%s", error)
            unknown += [error] if isinstance(error, UnreadableNow) else []
            continue
        try:
            if is_wanted:
                _replay(outbox, environment)
                return
        except Locked:
            raise Unavailable(
                f"another process sends what waits in {outbox.folder}: wait until it has ended, and run this again"
            ) from None
    # It may be one of these. What the disk refuses for good is another user's.
    if unknown:
        raise unknown[0]


def _replay(outbox: Outbox, environment: Environment, any_store: bool = False) -> int:
    end_abandoned(outbox)
    if outbox.is_empty():
        return 0
    store = store_name(environment)
    if not outbox.is_for(store):
        if not any_store:
            _logger.warning(
                "what waits in %s is for %s: name that in DIFFUSION_TRACKING_URI and DIFFUSION_EXPERIMENT, or send it"
                " to %s with `diffusion replay --any-store`",
                outbox.folder,
                outbox.store,
                store,
            )
            return 0
        # A training that runs sends its queue to its own store.
        with accessing(outbox.folder), outbox.of_training():
            outbox.set_store(store)
    count = 0
    with outbox.sending():
        with answering(environment):
            for sent in Sender(connect(environment), environment, outbox).send():
                count += sent
        # The training may have begun again.
        with suppress(Locked), accessing(outbox.folder), outbox.of_training():
            if outbox.is_done():
                outbox.clear()
    return count


def end_abandoned(outbox: Outbox) -> None:
    """End the run of a training whose process was killed; a training that runs keeps its own."""
    with suppress(Locked), accessing(outbox.folder), outbox.of_training():
        end_killed(outbox)


def end_killed(outbox: Outbox) -> None:
    """End the run of a queue whose process was killed; only within `of_training`."""
    if outbox.last_kind() not in (None, "end"):
        outbox.cut_torn_line()
        outbox.append({"kind": "end", "status": "KILLED", "time": _now()})


def _conclude(outbox: Outbox, environment: Environment) -> None:
    if outbox.clear_if_done():
        return
    _logger.warning(
        "%d entries for the tracking store %s wait in %s: the next training sends them, or `diffusion replay`",
        outbox.count_unsent(),
        without_userinfo(tracking_uri(environment)),
        outbox.folder,
    )


def _now() -> int:
    return time.time_ns() // 1_000_000
