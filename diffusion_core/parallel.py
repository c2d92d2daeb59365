"""Parallel calls in threads. If a call fails or a generator is closed, no further calls start."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int
) -> Generator[Result, None, None]:
    """Yield the results in order; a single item or a single thread runs in the caller's thread."""
    if min(len(items), threads) == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


def as_done(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int
) -> Generator[tuple[Item, Result], None, None]:
    """Yield the items with their results, in the order of completion."""
    pool = ThreadPoolExecutor(threads)
    try:
        running = {pool.submit(function, item): item for item in items}
        for done in as_completed(running):
            yield running[done], done.result()
    finally:
        pool.shutdown(cancel_futures=True)
