"""The training run in MLflow: parameters, data, metrics by step, and final status.

What is logged goes to a queue on disk, and a thread sends it. So no server can delay a training, and nothing is lost:
what a server does not take is sent by the next training with these checkpoints, or by `diffusion replay`.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from mlflow.exceptions import MlflowException

from diffusion_core.address import without_userinfo
from diffusion_core.config.environment import Environment
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.files import Locked
from diffusion_core.lineage.identity import flattened
from diffusion_core.lineage.outbox import DamagedQueue, Outbox
from diffusion_core.lineage.provenance import DatasetVersion
from diffusion_core.registry.connection import answering, connect, is_server, reason, store_refusal, tracking_uri
from diffusion_core.registry.sending import Sender
from diffusion_core.registry.system_metrics import system_metrics

# Seconds that a training waits, in all, while a store takes nothing. A new database takes seconds to be made.
PATIENCE_SERVER, PATIENCE_DATABASE = 2.0, 60.0
# Seconds between two attempts to reach a store.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0

_logger = logging.getLogger(__name__)


class Run:
    """An open run. Its methods write to a queue on disk, and return at once.

    Args:
        outbox: the queue.
        delivery: the thread that sends it.

    Attributes:
        key: the queue's key, by which `publish` finds the run.
    """

    def __init__(self, outbox: Outbox, delivery: "Delivery") -> None:
        self.key = outbox.key
        self._outbox = outbox
        self._delivery = delivery
        # A resumed training repeats its last steps.
        self._last_steps: dict[str, int] = {}
        for entry in outbox.entries():
            if entry["kind"] == "metrics":
                self._last_steps |= dict.fromkeys(entry["values"], entry["step"])

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of one step, without those that were logged before a restart."""
        new = {name: float(value) for name, value in values.items() if step > self._last_steps.get(name, -1)}
        if new:
            self._last_steps |= dict.fromkeys(new, step)
            self._append({"kind": "metrics", "values": new, "step": step})

    def next_step(self, prefix: str) -> int:
        """Return the step after the last of the metrics with this prefix."""
        return 1 + max((step for name, step in self._last_steps.items() if name.startswith(prefix)), default=-1)

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


class Delivery(threading.Thread):
    """Sends queues to the store while the process runs; it tries again as long as the store does not answer.

    Args:
        environment: the environment, with store and experiment.
        outboxes: the queues, the most important first.

    Attributes:
        refusal: the error of a store that refuses this user or experiment, or None.
        problem: why the last attempt failed, or None.
    """

    def __init__(self, environment: Environment, outboxes: Sequence[Outbox]) -> None:
        super().__init__(name="delivery", daemon=True)
        self.refusal: UserError | None = None
        self.problem: str | None = None
        self._environment = environment
        self._outboxes = [*outboxes]
        self._senders: dict[Path, Sender] = {}
        self._progress = threading.Condition()
        self._sent = 0
        self._woken = threading.Event()

    def run(self) -> None:
        """Send, and wait for more; daemon threads end with the process."""
        pause = FIRST_PAUSE
        while True:
            self._woken.clear()
            try:
                self._send()
                self.problem, self.refusal, pause = None, None, FIRST_PAUSE
                self._woken.wait()
            except Unavailable as error:
                self._note(str(error))
            except UserError as error:
                self.refusal = error
                self._note(str(error))
            except (MlflowException, OSError) as error:
                self.refusal = store_refusal(error, self._environment)
                self._note(str(self.refusal or reason(error)))
            if self.problem is not None:
                time.sleep(pause)
                pause = min(2.0 * pause, LONGEST_PAUSE)

    def wake(self) -> None:
        """Say that there is more to send."""
        self._woken.set()

    def wait_for(self, outbox: Outbox, seconds: float) -> float:
        """Wait until the store has all of a queue, or takes nothing for `seconds`; return the seconds that are left."""
        left = seconds
        while left > 0.0 and self.refusal is None and not outbox.is_empty():
            began, sent = time.monotonic(), self._sent
            with self._progress:
                self._progress.wait(min(left, 0.1))
            if self._sent == sent:
                left -= time.monotonic() - began
        return max(left, 0.0)

    def _send(self) -> None:
        for outbox in [*self._outboxes]:
            try:
                self._send_one(outbox)
            except DamagedQueue as error:
                # The training does not need it, and the other queues are sent.
                _logger.warning("%s", error)
                self._outboxes.remove(outbox)

    def _send_one(self, outbox: Outbox) -> None:
        if outbox.is_empty():
            return
        with suppress(Locked), outbox.sending():
            if outbox.folder not in self._senders:
                client = connect(self._environment)
                self._senders[outbox.folder] = Sender(client, self._environment, outbox)
            for count in self._senders[outbox.folder].send():
                with self._progress:
                    self._sent += count
                    self._progress.notify_all()

    def _note(self, problem: str) -> None:
        if self.problem is None:
            _logger.warning("the tracking store takes nothing (%s); what is logged waits on disk", problem)
        self.problem = problem
        with self._progress:
            self._progress.notify_all()


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
    that replaces one that the store has lost has the tag `continues_missing_run`. Queues of other trainings beside
    `folder` are sent too, and those of killed processes are ended first.

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
    others = [other for other in Outbox.all(folder.parent.parent) if other.folder != folder]
    for other in others:
        end_abandoned(other)
    is_new = next(outbox.entries(), None) is None
    delivery = Delivery(environment, [outbox, *others])
    run = Run(outbox, delivery)
    run.start(flattened(params), dataset, tags)
    delivery.start()
    patience = PATIENCE_SERVER if is_server(tracking_uri(environment)) else PATIENCE_DATABASE
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


def replay(environment: Environment) -> int:
    """Send what earlier trainings could not send; return the number of entries.

    Raises:
        Unavailable: the store does not answer.
        UserError: the store refuses this user, or its experiment cannot be used.
    """
    count = 0
    for outbox in Outbox.all(environment.checkpoints):
        end_abandoned(outbox)
        if outbox.is_empty():
            continue
        with suppress(Locked), outbox.sending(), answering(environment):
            for sent in Sender(connect(environment), environment, outbox).send():
                count += sent
        outbox.clear_if_done()
    return count


def end_abandoned(outbox: Outbox) -> None:
    """End the run of a training whose process was killed; a training that runs keeps its own."""
    with suppress(Locked), outbox.of_training():
        last = None
        for entry in outbox.entries():
            last = entry["kind"]
        if last not in (None, "end"):
            outbox.cut_torn_line()
            outbox.append({"kind": "end", "status": "KILLED", "time": _now()})


def _conclude(outbox: Outbox, environment: Environment) -> None:
    if outbox.clear_if_done():
        return
    _logger.warning(
        "%d entries for the tracking store %s wait in %s: the next training sends them, or `diffusion replay`",
        sum(1 for _ in outbox.unsent()),
        without_userinfo(tracking_uri(environment)),
        outbox.folder,
    )


def _now() -> int:
    return time.time_ns() // 1_000_000
