"""The page `plots/report.html`: a run as a person looks at it. It needs no other file, no network and no script."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion_core.data.report.pictures import addresses
from diffusion_core.lineage.evaluation import Evaluation
from diffusion_core.lineage.promotion import Decision
from diffusion_core.metrics.estimate import difference
from diffusion_core.metrics.features import Images
from diffusion_core.pictures import tiles
from diffusion_core.report.curves import HEIGHT, WIDTH, Chart
from diffusion_core.report.templating import templates

TEMPLATE = "report.html.jinja"
MOST_CLASSES, PER_CLASS = 30, 12
# Of the animated denoising, in milliseconds; the last frame stays longer.
FRAME, LAST_FRAME = 250, 1500


@dataclass(frozen=True)
class Sheet:
    """Images with a title."""

    title: str
    pictures: list[str]


@dataclass(frozen=True)
class Row:
    """A metric beside those of real images, noise and the champion, as text.

    Attributes:
        name: the metric.
        value: with half of its 95% interval.
        floor: of real images.
        ceiling: of noise.
        champion: the champion's, or empty.
        change: candidate less champion, with half of its 95% interval, or empty.
    """

    name: str
    value: str
    floor: str
    ceiling: str
    champion: str
    change: str


@dataclass(frozen=True)
class Content:
    """What the page shows.

    Attributes:
        title: name and version of the model.
        decision: the gate's, or None if it has not decided yet.
        evaluation: the metrics of the samples.
        images: the samples, uint8 (N, H, W, C).
        labels: their classes, int64 (N,), or None.
        classes: names of the classes.
        denoising: the picture of a few samples being made, as an address.
        animated: the same, animated.
        plots: addresses of other pictures: `both`, `metrics` and `nearest`.
        charts: curves of the training.
        data: numbers of the dataset by name.
        lineage: where the model comes from, by name; values may be addresses.
        cost: of the run, by name.
        changes: each option that is another one than the champion's: its name, the champion's and this run's value.
    """

    title: str
    decision: Decision | None
    evaluation: Evaluation
    images: Images
    labels: NDArray[np.int64] | None
    classes: Sequence[str]
    denoising: str
    animated: str
    plots: Mapping[str, str]
    charts: Sequence[Chart]
    data: Mapping[str, str]
    lineage: Mapping[str, str]
    cost: Mapping[str, str]
    changes: Sequence[tuple[str, str, str]]


def report(content: Content) -> str:
    """Return the page as HTML."""
    champion = None if content.decision is None else content.decision.grounds.champion_evaluation
    return (
        templates()
        .get_template(TEMPLATE)
        .render(
            content=content,
            counts=content.evaluation.counts,
            rows=metric_rows(content.evaluation, champion),
            has_champion=champion is not None,
            sheets=sheets(content.images, content.labels, content.classes),
            width=WIDTH,
            height=HEIGHT,
            is_small=content.images.shape[2] < 64,
        )
    )


def metric_rows(evaluation: Evaluation, champion: Evaluation | None) -> list[Row]:
    """Return a row for each metric."""
    rows = []
    for name, each in evaluation.estimates.items():
        other = None if champion is None else champion.estimates.get(name)
        beside = change = ""
        if other is not None:
            more, width = difference(each, other)
            beside, change = f"{other.value:.4g}", f"{more:+.3g} ± {width:.2g}"
        value = f"{each.value:.4g} ± {each.half_width:.2g}"
        rows.append(Row(name, value, f"{each.floor:.4g}", f"{each.ceiling:.4g}", beside, change))
    return rows


def sheets(images: Images, labels: NDArray[np.int64] | None, classes: Sequence[str]) -> list[Sheet]:
    """Return the first samples of each class, or of all if there are no classes."""
    if labels is None:
        return [Sheet("Samples", addresses(images[: 4 * PER_CLASS]))]
    return [
        Sheet(name, addresses(images[labels == label][:PER_CLASS]))
        for label, name in enumerate(classes[:MOST_CLASSES])
        if (labels == label).any()
    ]


def png_address(file: Path) -> str:
    """Return a PNG file as a `data:` address.

    Raises:
        OSError: it is missing, or is not a PNG file.
    """
    with Image.open(file) as image:
        image.verify()
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def animation(file: Path, height: int, width: int) -> str:
    """Return a grid of images of this size as an animated WebP, as a `data:` address.

    Each column of the grid becomes a frame, in which its images lie side by side.
    """
    with Image.open(file) as opened:
        found = tiles(opened, height, width)
    frames = [Image.fromarray(np.hstack([*found[:, column]])) for column in range(found.shape[1])]
    stream = io.BytesIO()
    times = [FRAME] * (len(frames) - 1) + [LAST_FRAME]
    frames[0].save(
        stream, "WEBP", save_all=True, append_images=frames[1:], duration=times, loop=0, quality=85, method=2
    )
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"
