"""Curves of a training as SVG paths."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Of a curve, in units of its own.
WIDTH, HEIGHT = 320.0, 120.0
MARGIN = 4.0


@dataclass(frozen=True)
class Curve:
    """A curve over the images that were trained on.

    Attributes:
        name: what is shown.
        path: in SVG, in a box of `WIDTH` x `HEIGHT`.
        text: the curve in words.
        low: the lowest value.
        high: the highest value.
        images: the images at the right end.
    """

    name: str
    path: str
    text: str
    low: str
    high: str
    images: str


def training_curves(file: Path) -> list[Curve]:
    """Return the curves of the loss and the learning rate in plots/loss.csv; none if it has fewer than two rows.

    Raises:
        ValueError: it is not such a table.
    """
    titles = {"loss": "Loss", "grad_norm": "Gradient norm", "learning_rate": "Learning rate"}
    with file.open(newline="", encoding="utf-8") as stream:
        table = csv.DictReader(stream)
        rows = list(table)
    if missing := {"images", *titles} - {*(table.fieldnames or ())}:
        raise ValueError(f"it has no column {min(missing)}")
    found = []
    for name, title in titles.items():
        points = [(float(row["images"]), float(row[name])) for row in rows if row.get(name)]
        points = [point for point in points if math.isfinite(point[1])]
        if len(points) > 1:
            found.append(_curve(title, points))
    return found


def _curve(name: str, points: Sequence[tuple[float, float]]) -> Curve:
    values = [value for _, value in points]
    low, high = min(values), max(values)
    span, last = (high - low) or 1.0, points[-1][0]
    places = " L ".join(
        f"{images / last * WIDTH:.1f} {HEIGHT - MARGIN - (value - low) / span * (HEIGHT - 2 * MARGIN):.1f}"
        for images, value in points
    )
    text = f"{name}: from {points[0][1]:.3g} to {points[-1][1]:.3g} after {last:,.0f} images"
    return Curve(name, f"M {places}", text, f"{low:.3g}", f"{high:.3g}", f"{last:,.0f}")
