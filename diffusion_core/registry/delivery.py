"""A thread that sends queues to the tracking store while a training runs."""

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from mlflow.exceptions import MlflowException

from diffusion_core.config.environment import Environment
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.lineage.outbox import Outbox
from diffusion_core.lineage.queue_errors import InaccessibleQueue, QueueError
from diffusion_core.locks import Locked
from diffusion_core.registry.connection import connect, reason, store_name, store_refusal
from diffusion_core.registry.sending import Sender

# Seconds between two attempts to reach a store.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0

_logger = logging.getLogger(__name__)


class Delivery(threading.Thread):
    """Sends queues to the store while the process runs; it tries again as long as the store does not answer.

    Args:
        environment: the environment, with store and experiment.
        outboxes: the queues; the first is the training's own, and what it gets goes before the others.

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
        self._own = next(iter(outboxes), None)
        self._senders: dict[Path, Sender] = {}
        self._progress = threading.Condition()
        self._woken = threading.Event()

    def run(self) -> None:
        """Send, and wait for more; daemon threads end with the process."""
        pause = FIRST_PAUSE
        while True:
            self._woken.clear()
            try:
                are_free = self._send()
                self.problem, self.refusal, pause = None, None, FIRST_PAUSE
                # Another process that was sending a queue may have ended before it saw the last entry.
                self._woken.wait(None if are_free else FIRST_PAUSE)
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
        """Wait until the store has all of a queue, at most `seconds`; return the seconds that are left."""
        end = time.monotonic() + seconds
        while outbox in self._outboxes and self.refusal is None and not outbox.is_empty():
            left = end - time.monotonic()
            if left <= 0.0:
                break
            with self._progress:
                self._progress.wait(min(left, 0.1))
        return max(end - time.monotonic(), 0.0)

    def _send(self) -> bool:
        """Send all queues, and return whether no other process was sending one of them."""
        are_free = [self._send_one(outbox) for outbox in [*self._outboxes]]
        return all(are_free)

    def _send_one(self, outbox: Outbox) -> bool:
        if outbox not in self._outboxes or outbox.is_empty():
            return True
        try:
            with outbox.sending():
                if not outbox.is_for(store_name(self._environment)):
                    # `diffusion replay --any-store` has given it another store meanwhile.
                    self._outboxes.remove(outbox)
                    return True
                if outbox.folder not in self._senders:
                    client = connect(self._environment)
                    self._senders[outbox.folder] = Sender(client, self._environment, outbox)
                for _ in self._senders[outbox.folder].send():
                    with self._progress:
                        self._progress.notify_all()
                    if self._own is not None and outbox is not self._own:
                        self._send_one(self._own)
        except Locked:
            return False
        except QueueError as error:
            if outbox is self._own and isinstance(error, InaccessibleQueue):
                # Its disk may have room again.
                raise (Unavailable if isinstance(error, Unavailable) else UserError)(str(error)) from None
            # The training does not need it, and the other queues are sent.
            _logger.warning("%s", error)
            self._outboxes.remove(outbox)
        return True

    def _note(self, problem: str) -> None:
        if self.problem is None:
            _logger.warning("the tracking store takes nothing (%s); what is logged waits on disk", problem)
        self.problem = problem
        with self._progress:
            self._progress.notify_all()
