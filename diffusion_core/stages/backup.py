"""A process that copies a training's checkpoints to a bucket, for machines whose disks do not outlive them.

It is a process of its own, so that no bucket can delay a training. Its standard input ends with the training's process,
however that has ended. Then it makes the last copy and ends, soon in any case. If it dies before, it is started again.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from diffusion_core.config.environment import Environment, load_environment
from diffusion_core.errors import UserError
from diffusion_core.lineage.checkpoints import FINISHED, checkpoints
from diffusion_core.stages.copies import Copies
from diffusion_core.stages.fetching import fetch_newest

logger = logging.getLogger(__name__)

# Seconds that the last copy may take after the training has ended.
PATIENCE = 10.0
# Seconds between two looks at the folder.
PAUSE = 1.0
# Seconds between two looks at the process.
LOOK = 10.0
# Signals to the whole group. They end the training, which then saves a checkpoint that is to be copied.
ENDINGS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def backup(environment: Environment, folder: Path) -> Iterator[None]:
    """Fetch the newest copy, and copy the folder's checkpoints to the bucket while the block runs, if one is named.

    Args:
        environment: the environment, with the bucket.
        folder: a training's folder of checkpoints.

    Raises:
        UserError: the bucket cannot be used.
        Unavailable: the bucket does not answer, so it is not known whether it has newer checkpoints.
    """
    copies = Copies.of(environment, folder)
    if copies is None:
        yield
        return
    fetch_newest(copies)
    ended = threading.Event()
    with ThreadPoolExecutor(1, "backup") as pool:
        is_copied = pool.submit(_copied, copies, _started(folder), ended)
        try:
            yield
        finally:
            ended.set()
            if not is_copied.result():
                logger.warning("the last checkpoint is not in %s, but only in %s", copies.address, folder)


def _copied(copies: Copies, process: subprocess.Popen[bytes], ended: threading.Event) -> bool:
    """Start the process again each time that it dies before `ended`, and return whether the last copy is made."""
    is_over = False
    while not is_over:
        is_over = ended.wait(LOOK)
        if process.poll() is not None:
            logger.warning(
                "the process that copies checkpoints to %s ended with %d: it is started again",
                copies.address,
                process.returncode,
            )
            try:
                process = _started(copies.folder)
            except OSError as error:
                logger.warning("it cannot be started now (%s); this is tried again", error)
    assert process.stdin is not None
    process.stdin.close()
    try:
        return process.wait(PATIENCE + LOOK) == 0
    except subprocess.TimeoutExpired:
        # It is stopped, or a dead disk holds it.
        process.kill()
        return False


def _started(folder: Path) -> subprocess.Popen[bytes]:
    """Start the process with the endings blocked, as it inherits: none reaches it, from its first moment on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    try:
        command = [sys.executable, "-m", "diffusion_core.stages.backup", str(folder)]
        return subprocess.Popen(command, stdin=subprocess.PIPE)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main() -> None:
    """Copy the checkpoints in the folder of the first argument until standard input ends."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    copies = Copies.of(load_environment(), Path(sys.argv[1]))
    assert copies is not None, "the training's process has the same environment"
    ended = threading.Event()

    def notice_the_end() -> None:
        sys.stdin.buffer.read()
        # The other thread may be in a transfer that hangs.
        patience = threading.Timer(PATIENCE, os._exit, (1,))
        patience.daemon = True
        patience.start()
        ended.set()
        # Or in a long one. What says that the training is finished is sent first, so that the next one may remove these
        # copies. The other thread repeats this, and reports an error.
        with suppress(UserError, OSError):
            copies.send_end()

    threading.Thread(target=notice_the_end, daemon=True).start()
    copied_state, error_is_reported, training_has_ended, finished_are_removed = None, False, False, False
    while not training_has_ended:
        training_has_ended = ended.wait(PAUSE)
        try:
            state = _state(copies.folder)
            if state != copied_state:
                copies.send()
                if not finished_are_removed:
                    copies.remove_finished()
                copied_state, error_is_reported, finished_are_removed = state, False, True
        except (UserError, OSError) as error:
            copied_state = None
            if not error_is_reported:
                logger.warning("checkpoints are not copied now (%s); this is tried again", error)
            error_is_reported = True
    # Threads of a transfer that hangs are not waited for.
    os._exit(1 if copied_state is None else 0)


def _state(folder: Path) -> tuple[object, ...]:
    """Return what changes with each checkpoint and at the end: without a change, the bucket is not asked."""
    return (folder / FINISHED).exists(), *((path.name, path.stat().st_mtime_ns) for path in checkpoints(folder))


if __name__ == "__main__":
    main()
