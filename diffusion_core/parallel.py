"""Many waits at a time. What was not begun never is when a generator is closed or a call fails."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int
) -> Generator[Result, None, None]:
    """Yield the results in order; what is alone needs no thread."""
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
    """Yield the items with their results, those that are done first before the others."""
    pool = ThreadPoolExecutor(threads)
    try:
        running = {pool.submit(function, item): item for item in items}
        for done in as_completed(running):
            yield running[done], done.result()
    finally:
        pool.shutdown(cancel_futures=True)
