"""What a training run reports on its way: means over the steps since the last report."""

import csv
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from diffusion_core.training.report import StepReport

COLUMNS = ("images", "loss", "grad_norm", "learning_rate")


class History:
    """Gathers step reports into rows; reads tensors from the device when a row is complete.

    Args:
        every_images: images between two rows.
        state: of a run that is gone on with, as `state()` gave it.
    """

    def __init__(self, every_images: int, state: dict[str, Any] | None = None) -> None:
        state = state or {"rows": [], "pending": []}
        self.every_images = every_images
        self.rows: list[dict[str, float]] = state["rows"]
        self._pending = [
            StepReport(step, images, size, torch.tensor(loss), torch.tensor(norm), rate, torch.tensor(skipped), 0.0)
            for step, images, size, loss, norm, rate, skipped in state["pending"]
        ]
        self._restored = len(self._pending)

    def add(self, report: StepReport, last: bool) -> dict[str, float] | None:
        """Take in a step; return the figures of a new row, with images_per_second, where one is complete.

        A row ends at the first step that reaches a multiple of `every_images`, and at the last step.
        """
        self._pending.append(report)
        if not (report.reaches(self.every_images) or last):
            return None
        whole = [each for each in self._pending if not bool(each.skipped)]
        # Now a GPU has done what it was told, which counts; what was done between two rows does not.
        timed = self._pending[self._restored :]
        speed = sum(each.batch_size for each in timed) / (time.monotonic() - timed[0].began)
        self._pending, self._restored = [], 0
        if not whole:
            return None
        row = {
            "images": report.images,
            "loss": fmean(float(each.loss) for each in whole),
            "grad_norm": fmean(float(each.grad_norm) for each in whole),
            "learning_rate": report.learning_rate,
        }
        self.rows.append(row)
        return {**row, "images_per_second": speed}

    def state(self) -> dict[str, Any]:
        """Return the rows, and the steps that no row holds yet, as JSON."""
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
        return {"rows": self.rows, "pending": pending}

    def write(self, file: Path) -> None:
        """Write the rows as CSV."""
        with file.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
