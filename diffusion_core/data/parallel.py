"""Many files to pixels, on every core and in order."""

import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import parent_process
from pathlib import Path

from diffusion_core.data.decode import Decoded, decode
from diffusion_core.errors import UserError

CHUNK = 64  # files a worker takes at a time


def decode_all(
    files: Sequence[Path], size: tuple[int, int], channels: int, *, workers: int | None = None
) -> Iterator[Decoded]:
    """Yield `decode(file, size, channels)` of each of `files`, which is not empty, in order.

    `workers` is the number of processes, by default one a core; the result does not depend on it. At most two chunks
    a worker wait to be taken, however slowly they are.

    Raises:
        UserError: a worker was killed, as happens when the machine has no memory left.
        OSError: a file cannot be read.
    """
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    workers = min(workers or os.cpu_count() or 1, len(chunks))
    waiting: deque[Future[list[Decoded]]] = deque()
    pool = ProcessPoolExecutor(workers, initializer=_follow_parent)
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_decode_chunk, chunk, size, channels))
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "prepare: a process that decodes data/raw was killed, most likely for want of memory:"
            " free some, or take the largest images out of the source"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_chunk(files: Sequence[Path], size: tuple[int, int], channels: int) -> list[Decoded]:
    return [decode(file, size, channels) for file in files]


def _follow_parent() -> None:
    """Leave the signals to the parent, and end this worker when the parent is gone: a killed one cannot say so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
