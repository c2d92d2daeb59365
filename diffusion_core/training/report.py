"""Reports of a training run: rows of means for the plot."""

import csv
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

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

    @property
    def note(self) -> str:
        """The loss of the last row in words, or nothing before the first."""
        if not self.rows:
            return ""
        loss = self.rows[-1]["loss"]
        return "no finite loss" if loss is None else f"loss {loss:.4f}"

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
