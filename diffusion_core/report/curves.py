"""Curves of trainings as SVG paths."""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Of a chart, in units of its own.
WIDTH, HEIGHT = 320.0, 120.0
MARGIN = 4.0

# Place on the horizontal axis, and value.
Point = tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """Curves with common axes; the horizontal one begins at 0.

    Attributes:
        name: what is shown.
        names: of each curve by its number, from 1.
        paths: of each curve by its number, from 1, in SVG, in a box of `WIDTH` x `HEIGHT`.
        text: the curves in words.
        low: the lowest value.
        high: the highest value.
        end: the place at the right end, with its unit.
    """

    name: str
    names: dict[int, str]
    paths: dict[int, str]
    text: str
    low: str
    high: str
    end: str


def read_points(file: Path, names: Sequence[str]) -> dict[str, list[Point]]:
    """Return the finite values of columns of a CSV file, over its column `images`.

    Raises:
        ValueError: it is not such a table.
    """
    with file.open(newline="", encoding="utf-8") as stream:
        table = csv.DictReader(stream)
        rows = list(table)
    if missing := {"images", *names} - {*(table.fieldnames or ())}:
        raise ValueError(f"it has no column {min(missing)}")
    return {name: [(float(row["images"]), float(row[name])) for row in rows if row.get(name)] for name in names}


def chart(name: str, unit: str, curves: Sequence[tuple[str, Sequence[Point]]]) -> Chart | None:
    """Return the curves that have a finite value, or None without any; one value alone is a small square.

    Args:
        name: what is shown.
        unit: of the horizontal axis, for example "images".
        curves: the name of each curve, and its points from left to right. One that is left out keeps its number.
    """
    finite = [[point for point in points if math.isfinite(point[1])] for _, points in curves]
    shown = {number: points for number, points in enumerate(finite, start=1) if points}
    if not shown:
        return None
    values = [value for points in shown.values() for _, value in points]
    low, high = min(values), max(values)
    span, last = (high - low) or 1.0, max(points[-1][0] for points in shown.values()) or 1.0

    def path(points: Sequence[Point]) -> str:
        places = [
            f"{place / last * WIDTH:.1f} {HEIGHT - MARGIN - (value - low) / span * (HEIGHT - 2 * MARGIN):.1f}"
            for place, value in points
        ]
        if len(places) > 1:
            return f"M {' L '.join(places)}"
        # Inside of the box, also where the place is at one of its ends.
        side = MARGIN if points[0][0] < last / 2 else -MARGIN
        return f"M {places[0]} h {side} v -{MARGIN} h {-side} z"

    names = {number: curves[number - 1][0] for number in shown}
    words = [f"{names[number]}: {_span(points)} after {points[-1][0]:,.0f} {unit}" for number, points in shown.items()]
    paths = {number: path(points) for number, points in shown.items()}
    return Chart(name, names, paths, "; ".join(words), f"{low:.3g}", f"{high:.3g}", f"{last:,.0f} {unit}")


def _span(points: Sequence[Point]) -> str:
    first, last = f"{points[0][1]:.3g}", f"{points[-1][1]:.3g}"
    return f"from {first} to {last}" if len(points) > 1 else last
