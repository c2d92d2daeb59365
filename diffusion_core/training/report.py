"""Reports of a training run: rows of means for the plot, and a progress bar."""

import csv
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tqdm import tqdm

from diffusion_core.training.step import StepReport

COLUMNS = ("images", "loss", "grad_norm", "learning_rate", "skipped")

Row = dict[str, float | None]


class History:
    """Averages step reports into rows; reads tensors from the device only when a row is complete.

    Args:
        every_images: images between two rows.
        state: the result of `state()` of the run to resume.

    Attributes:
        rows: one dict per row with the keys of `COLUMNS`. Loss and norm are means without the skipped steps, and None
            if all were skipped.
        skipped: numbers of the skipped steps, in the rows so far.
    """

    def __init__(self, every_images: int, state: dict[str, Any] | None = None) -> None:
        state = state or {"rows": [], "pending": [], "skipped": []}
        self.every_images = every_images
        self.rows: list[Row] = [{name: row[name] for name in COLUMNS} for row in state["rows"]]
        self.skipped = [int(step) for step in state["skipped"]]
        self._pending = [
            StepReport(step, images, size, torch.tensor(loss), torch.tensor(norm), rate, torch.tensor(skipped), 0.0)
            for step, images, size, loss, norm, rate, skipped in state["pending"]
        ]
        self._restored = len(self._pending)

    def add(self, report: StepReport, last: bool) -> Row | None:
        """Add a step; return the new row with images_per_second if one is complete, else None.

        A row ends at the first step that reaches a multiple of `every_images`, and at the last step.
        """
        self._pending.append(report)
        if not (report.reaches(self.every_images) or last):
            return None
        whole = [each for each in self._pending if not bool(each.skipped)]
        skipped = [each.step for each in self._pending if bool(each.skipped)]
        # Reading `skipped` has waited for the GPU, so the time covers its work. Steps before a restart are not timed.
        timed = self._pending[self._restored :]
        speed = sum(each.batch_size for each in timed) / (time.monotonic() - timed[0].began)
        self._pending, self._restored = [], 0
        row: Row = {
            "images": report.images,
            "loss": fmean(float(each.loss) for each in whole) if whole else None,
            "grad_norm": fmean(float(each.grad_norm) for each in whole) if whole else None,
            "learning_rate": report.learning_rate,
            "skipped": len(skipped),
        }
        self.rows.append(row)
        self.skipped += skipped
        return {**row, "images_per_second": speed}

    def state(self) -> dict[str, Any]:
        """Return the rows and the steps that are in no row yet, as JSON values."""
        pending = [
            (
                each.step,
                each.images,
                each.batch_size,
                float(each.loss),
                float(each.grad_norm),
                each.learning_rate,
                float(each.skipped),
            )
            for each in self._pending
        ]
        return {"rows": self.rows, "pending": pending, "skipped": self.skipped}


def write_rows(file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, float | None]]) -> None:
    """Write rows with these keys as CSV."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


class Progress:
    """Shows the images trained on, the rate and the remaining time.

    Args:
        total: images of the whole run.
        done: images trained on before this process started.
    """

    def __init__(self, total: int, done: int) -> None:
        self._bar = tqdm(total=total, initial=done, unit="image", unit_scale=True, desc="train", disable=None)
        self._total = total
        self._start, self._done_at_start = time.monotonic(), done

    def step(self, images: int) -> None:
        """Add `images` to the images trained on."""
        self._bar.update(images)

    def report(self, row: Row) -> None:
        """Show the loss of a row of the history; without a terminal, print a line to stderr."""
        loss = "no finite loss" if row["loss"] is None else f"loss {row['loss']:.4f}"
        if not self._bar.disable:
            self._bar.set_postfix_str(loss)
            return
        done = int(row["images"] or 0)
        rate = (done - self._done_at_start) / (time.monotonic() - self._start)
        left = max(0, self._total - done) / rate
        print(
            f"train: {done:,} of {self._total:,} images, {loss}, {rate:,.0f} images/s, {left:,.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        """Close the progress bar."""
        self._bar.close()
