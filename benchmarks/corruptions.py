"""Do the metrics see what is wrong with images? Real images, corrupted in known ways, measured with each extractor.

    python -m benchmarks.corruptions [--photographs ZIP]

The digits are measured, and with --photographs the images of a zip file with one folder a class. Samples are real
images that no extractor was trained on, with a corruption of increasing strength. The results are written to
benchmarks/corruptions.json, their plots to docs/images.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from skimage.filters import gaussian
from tqdm import tqdm

from benchmarks.machine import describe
from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import EvaluateSettings, IngestSettings, PrepareSettings, ReferenceSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.metrics.evaluation import Evaluator
from diffusion_core.metrics.extractors.imagenet import ImageNet
from diffusion_core.metrics.features import Images
from diffusion_core.metrics.reference import fit_reference
from diffusion_core.metrics.views import domain_view, other_views
from diffusion_core.stages import ingest, prepare

RESULTS = Path("benchmarks/corruptions.json")
HELD_OUT = 0.3
# Levels of a corruption, from none to strong.
LEVELS = (0.0, 1 / 3, 2 / 3, 1.0)
# Images of the widest corruption come from two of ten classes.
SHARE = 0.18

Random = np.random.Generator
# By corruption and metric: value and half of the interval at each level.
Found = dict[str, dict[str, list[tuple[float, float]]]]


def blurred(images: Images, level: float, _: Random) -> Images:
    """Blur by a Gaussian, at most an eighth of the height wide."""
    if level == 0.0:
        return images
    # A third of it would be less than a pixel of a digit.
    sigma = level**0.5 * images.shape[1] / 8
    soft = [gaussian(each, sigma, channel_axis=-1, preserve_range=True) for each in images]  # type: ignore[no-untyped-call]
    rounded: Images = np.rint(np.stack(soft)).astype(np.uint8)
    return rounded


def noisy(images: Images, level: float, random: Random) -> Images:
    """Add normal noise, with a deviation of at most 64 of 255."""
    return _clipped(images + random.normal(0.0, 64.0, images.shape) * level)


def shifted(images: Images, level: float, _: Random) -> Images:
    """Add at most 80 of 255 to the first channel: red, or gray."""
    return _clipped(images + level * np.array([80.0, *[0.0] * (images.shape[-1] - 1)]))


CORRUPTIONS: dict[str, Callable[[Images, float, Random], Images]] = {
    "blur": blurred,
    "noise": noisy,
    "colour shift": shifted,
}
# What else can be wrong: which images there are.
SELECTIONS = ("imbalance", "dropped classes", "copies")
WORSE = {"frechet": 1, "kernel": 1, "density": -1, "coverage": -1}
# How the metrics must move with each corruption: up (1) or down (-1).
SIGNS: dict[str, dict[str, int]] = {
    "blur": WORSE | {"precision": -1},
    "noise": WORSE | {"precision": -1},
    "colour shift": WORSE | {"precision": -1},
    "imbalance": {"frechet": 1, "kernel": 1, "coverage": -1, "class_entropy": -1},
    "dropped classes": {"frechet": 1, "kernel": 1, "coverage": -1, "recall": -1, "class_entropy": -1},
    "copies": {"memorisation": 1},
}


def samples(kind: str, level: float, train: ImageDataset, held_out: ImageDataset, random: Random) -> Images:
    """Return held-out images with a corruption."""
    labels = held_out.labels
    assert labels is not None
    count, classes = int(SHARE * len(held_out)), np.unique(labels)
    if kind == "dropped classes":
        classes = classes[: len(classes) - round(level * 0.8 * len(classes))]
    rows = random.permutation(np.flatnonzero(np.isin(labels, classes)))[:count]
    if kind == "imbalance":
        alike = random.permutation(np.flatnonzero(labels == classes[0]))[: round(level * count / 2)]
        rows[: len(alike)] = alike
    images = held_out.images(rows)
    if kind == "copies":
        copies = train.images(random.permutation(len(train))[: round(level * len(images))])
        images[: len(copies)] = _clipped(copies + random.integers(-2, 3, copies.shape))
    return CORRUPTIONS[kind](images, level, random) if kind in CORRUPTIONS else images


def _clipped(values: NDArray[np.floating[Any]] | NDArray[np.integer[Any]]) -> Images:
    clipped: Images = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
    return clipped


def measure(evaluator: Evaluator) -> Found:
    """Return each metric at each level with half of its 95% interval, by corruption and metric."""
    found: Found = {}
    for kind in tqdm([*CORRUPTIONS, *SELECTIONS], desc="corruptions"):
        for level in LEVELS:
            images = samples(kind, level, evaluator.train, evaluator.validation, np.random.default_rng(0))
            for name, each in evaluator.evaluate(images).estimates.items():
                found.setdefault(kind, {}).setdefault(name, []).append((each.value, each.half_width))
    return found


def wrong(found: Found, prefix: str = "") -> list[str]:
    """Return a clause for each metric that moves the wrong way by more than chance, or not at all.

    No step may go the wrong way by more than the intervals of its ends, and the last level must be worse than none by
    more than they are.
    """
    clauses = []
    for kind, signs in SIGNS.items():
        for name, sign in signs.items():
            values, widths = np.array(found[kind][prefix + name]).T
            chance = np.hypot(widths[1:], widths[:-1])
            is_worse = sign * (values[-1] - values[0]) > np.hypot(widths[0], widths[-1])
            if not is_worse or (sign * np.diff(values) < -chance).any():
                clauses.append(f"{prefix}{name} with {kind}: {', '.join(f'{value:.4g}' for value in values)}")
    return clauses


@dataclass(frozen=True)
class Work:
    """A dataset to measure.

    Attributes:
        source: the section `ingest.source`.
        size: of the prepared images, in pixels.
        color: of the prepared images.
        images: training budget of the domain's features.
    """

    source: Mapping[str, str]
    size: int
    color: str
    images: int

    def open(self) -> tuple[ImageDataset, ImageDataset]:
        """Return training and held-out images, prepared in the working directory."""
        ingest.run(IngestSettings.model_validate({"source": self.source}), Environment())
        prepare.run(
            PrepareSettings.model_validate(
                {
                    "image_size": self.size,
                    "color": self.color,
                    "validation_fraction": HELD_OUT,
                    "duplicate_distance": 0.1,
                }
            )
        )
        folder = Path("data/prepared")
        return ImageDataset.open(folder, "train"), ImageDataset.open(folder, "validation")


def run(train: ImageDataset, held_out: ImageDataset, images: int) -> Found:
    """Measure all corruptions with the domain's features and with ImageNet's."""
    device = torch.device("cpu")
    reference = fit_reference(train, held_out, ReferenceSettings(images=images), device)
    settings = EvaluateSettings(extractors=(ImageNet(),), half_size=5_000)
    others = other_views(settings.extractors, train, held_out, Environment(), device)
    return measure(Evaluator([domain_view(reference), *others], train, held_out, settings))


def plot(found: Found, title: str) -> Figure:
    """Plot each metric that must move, by corruption and level; the domain's features and ImageNet's."""
    names = sorted({name for signs in SIGNS.values() for name in signs})
    figure = Figure(figsize=(2.0 * len(SIGNS), 1.5 * len(names)), dpi=110, layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(len(names), len(SIGNS), squeeze=False)
    for row, name in zip(panels, names, strict=True):
        for axes, (kind, signs) in zip(row, SIGNS.items(), strict=True):
            for prefix, colour, style in (("", "#2a6f97", "-"), ("imagenet_", "#c2570c", "--")):
                values, widths = np.array(found[kind][prefix + name]).T
                scale = max(abs(values).max(), 1e-9)
                axes.errorbar(LEVELS, values / scale, widths / scale, color=colour, linestyle=style, marker="o", ms=3)
            axes.set_ylim(-0.1, 1.15)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_facecolor("#eef5ee" if name in signs else "#ffffff")
            if axes in panels[0]:
                axes.set_title(kind, fontsize=9)
        row[0].set_ylabel(name.replace("_", "\n"), fontsize=8)
    return figure


def main() -> None:
    """Measure, write the results and plots, and say what moves the wrong way."""
    parser = argparse.ArgumentParser("python -m benchmarks.corruptions", description=__doc__)
    parser.add_argument("--photographs", type=Path, help="a zip file with one folder a class")
    arguments = parser.parse_args()
    content: dict[str, Any] = {"machine": describe(), "levels": LEVELS}
    works = {"digits": Work({"kind": "digits"}, 8, "grayscale", 30_000)}
    if arguments.photographs:
        path = str(arguments.photographs.resolve())
        works["photographs"] = Work({"kind": "zip", "path": path}, 32, "rgb", 100_000)
    figures = Path("docs/images").resolve()
    for name, work in works.items():
        with tempfile.TemporaryDirectory() as folder, chdir(folder):
            content[name] = run(*work.open(), work.images)
        figure = plot(content[name], f"{name.capitalize()}: each metric by strength of the corruption")
        FigureCanvasAgg(figure).print_png(str(figures / f"corruptions-{name}.png"))  # type: ignore[no-untyped-call]
        for prefix in ("", "imagenet_"):
            for clause in wrong(content[name], prefix):
                print(f"{name}: moves the wrong way: {clause}")
        RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
