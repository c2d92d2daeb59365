"""Progress that people can read: a bar on a terminal, a plain line a report elsewhere."""

import sys
import time

from tqdm import tqdm


class Progress:
    """Shows images done, rate and time left.

    Args:
        total: images of the whole run.
        done: images of a run that is gone on with.
    """

    def __init__(self, total: int, done: int) -> None:
        self._bar = tqdm(total=total, initial=done, unit="image", unit_scale=True, desc="train", disable=None)
        self._total = total
        self._start, self._done_at_start = time.monotonic(), done

    def step(self, images: int) -> None:
        """So many images more are done."""
        self._bar.update(images)

    def report(self, row: dict[str, float]) -> None:
        """Show the figures of a row of the history."""
        if not self._bar.disable:
            self._bar.set_postfix_str(f"loss {row['loss']:.4f}")
            return
        done = int(row["images"])
        rate = (done - self._done_at_start) / (time.monotonic() - self._start)
        left = max(0, self._total - done) / rate
        print(
            f"train: {done:,} of {self._total:,} images, loss {row['loss']:.4f},"
            f" {rate:,.0f} images/s, {left:,.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
