"""Decodes many files in several processes, in the order of the files.

A file that takes too long, or whose decoder dies, costs the process that decodes it. Then the files that were waiting
are decoded one by one, each in a process of its own, so that the one to blame is known.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path

from diffusion_core.data.decode import Decoded, decode
from diffusion_core.data.decoding import Decoding
from diffusion_core.data.raw import RawFile
from diffusion_core.errors import UserError

# Of a task of a worker process: files, and bytes of them, unless one file has more.
CHUNK, CHUNK_BYTES = 64, 8 * 2**20


def decode_all(
    folder: Path, files: Sequence[RawFile], wanted: Decoding, *, workers: int | None = None
) -> Iterator[Decoded]:
    """Yield what `decode` makes of each of `files`, in order.

    At most two chunks per worker are in progress or wait for the caller.

    Args:
        folder: data/raw.
        files: the images.
        wanted: how to decode them.
        workers: number of processes, by default one per core; does not affect the result.

    Raises:
        UserError: memory is too small for a file, or a pack is missing or damaged.
        OSError: a pack cannot be read.
    """
    chunks = deque(in_chunks(files))
    workers = min(workers or os.cpu_count() or 1, len(chunks))
    while chunks:
        yield from _until_one_dies(folder, chunks, wanted, workers)
        for _ in range(min(2 * workers + 1, len(chunks))):
            for file in chunks.popleft():
                yield alone(file.path, file.read(folder), wanted)


def in_chunks(files: Sequence[RawFile]) -> Iterator[Sequence[RawFile]]:
    """Cut the files into those of each task, in order."""
    start = size = 0
    for stop, file in enumerate(files):
        if stop > start and (stop == start + CHUNK or size + file.size > CHUNK_BYTES):
            yield files[start:stop]
            start, size = stop, 0
        size += file.size
    if files:
        yield files[start:]


def _until_one_dies(
    folder: Path, chunks: deque[Sequence[RawFile]], wanted: Decoding, workers: int
) -> Iterator[Decoded]:
    """Take chunks and yield their results until a process dies or none are left; what has no result stays."""
    ahead = iter([*chunks])
    pool = ProcessPoolExecutor(workers, initializer=_follow_parent)
    try:
        waiting = deque(pool.submit(_decode_chunk, folder, chunk, wanted) for chunk in islice(ahead, 2 * workers))
        while waiting:
            results = waiting.popleft().result()
            chunks.popleft()
            yield from results
            waiting.extend(pool.submit(_decode_chunk, folder, chunk, wanted) for chunk in islice(ahead, 1))
    except BrokenProcessPool:
        return
    except MemoryError as error:
        raise too_small(str(error)) from None
    finally:
        pool.shutdown(cancel_futures=True)


def alone(name: str, content: bytes, wanted: Decoding) -> Decoded:
    """Return what `decode` makes of a file in a process of its own, or why that process died.

    Args:
        name: path of the file, for messages.
        content: the file's bytes.
        wanted: how to decode it.

    Raises:
        UserError: memory is too small for it.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=_send, args=(sender, name, content, wanted))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = None
    finally:
        receiver.close()
        process.join()
    if isinstance(result, Decoded):
        return result
    if isinstance(result, MemoryError) or process.exitcode == -signal.SIGKILL:
        raise too_small(name)
    if process.exitcode == -signal.SIGALRM:
        reason = f"decoding takes longer than prepare.max_seconds, which is {wanted.max_seconds:g}"
    else:
        reason = f"its decoder dies with exit code {process.exitcode}"
    return Decoded(reason=reason)


def too_small(name: str) -> UserError:
    """Return the error to raise where memory is too small for a file."""
    return UserError(
        f"prepare: memory is too small to decode {name}: free some, or take the largest images out of the source"
    )


def decode_file(name: str, content: bytes, wanted: Decoding) -> Decoded:
    """Return what `decode` makes of a file; where that takes too long, the process ends by SIGALRM.

    Raises:
        MemoryError: memory is too small; its text is the name.
    """
    # No decoder can be interrupted, so what takes too long ends the process.
    signal.setitimer(signal.ITIMER_REAL, wanted.max_seconds)
    try:
        return decode(content, wanted)
    except MemoryError:
        raise MemoryError(name) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _decode_chunk(folder: Path, files: Sequence[RawFile], wanted: Decoding) -> list[Decoded]:
    return [decode_file(file.path, file.read(folder), wanted) for file in files]


def _send(sender: Connection, name: str, content: bytes, wanted: Decoding) -> None:
    _follow_parent()
    try:
        result: Decoded | MemoryError = decode_file(name, content, wanted)
    except MemoryError as error:
        result = error
    sender.send(result)


def _follow_parent() -> None:
    """Ignore INT, which the parent handles, and end this worker when its parent ends, even if killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
