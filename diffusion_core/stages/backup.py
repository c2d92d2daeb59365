"""A process that copies a training's checkpoints to a bucket, for machines whose disks do not outlive them.

It is a process of its own, so that no bucket can delay a training. Its standard input ends with the training's process,
however that has ended. Then it makes the last copy and ends, soon in any case.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusion_core.config.environment import Environment, load_environment
from diffusion_core.errors import UserError
from diffusion_core.stages.copies import Copies

logger = logging.getLogger(__name__)

# Seconds that the last copy may take after the training has ended.
PATIENCE = 10.0
# Seconds between two looks at the folder.
PAUSE = 1.0


@contextmanager
def backup(environment: Environment, folder: Path) -> Iterator[None]:
    """Fetch the newest copy, and copy the folder's checkpoints to the bucket while the block runs, if one is named.

    Args:
        environment: the environment, with the bucket.
        folder: a training's folder of checkpoints.

    Raises:
        UserError: the bucket cannot be used.
    """
    copies = Copies.of(environment, folder)
    if copies is None:
        yield
        return
    copies.check()
    copies.fetch()
    command = [sys.executable, "-m", "diffusion_core.stages.backup", str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        if process.stdin is not None:
            process.stdin.close()
        if process.wait():
            logger.warning("the last checkpoint is not in %s, but only in %s", copies.address, folder)


def main() -> None:
    """Copy the checkpoints in the folder of the first argument until standard input ends."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    for each in (signal.SIGTERM, signal.SIGINT):
        # A signal to the whole group ends the training, which saves a checkpoint: it is to be copied.
        signal.signal(each, signal.SIG_IGN)
    copies = Copies.of(load_environment(), Path(sys.argv[1]))
    assert copies is not None, "the training's process has the same environment"
    ended = threading.Event()

    def notice_the_end() -> None:
        sys.stdin.buffer.read()
        ended.set()
        # The other thread may be in a transfer that hangs.
        time.sleep(PATIENCE)
        os._exit(1)

    threading.Thread(target=notice_the_end, daemon=True).start()
    told, is_last, is_sent = False, False, False
    while not is_last:
        is_last = ended.wait(PAUSE)
        try:
            if not is_sent:
                copies.remove_finished()
            copies.send()
            is_sent, told = True, False
        except (UserError, OSError) as error:
            is_sent = False
            if not told:
                logger.warning("checkpoints are not copied now (%s); this is tried again", error)
            told = True
    # Threads of a transfer that hangs are not waited for.
    os._exit(0 if is_sent else 1)


if __name__ == "__main__":
    main()
