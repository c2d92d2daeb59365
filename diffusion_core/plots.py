"""The plots of an evaluation."""

import os
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion_core.metrics.estimate import Estimate
from diffusion_core.pictures import grid

# Matplotlib reads this at import time; by default it writes to the user's home.
os.environ.setdefault("MPLCONFIGDIR", ".cache/matplotlib")

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Images = NDArray[np.uint8]

# Of generated images, real ones and noise.
COLOURS = ["#2a6f97", "#b8bec6", "#d9a441"]
INK = "#22272e"
PER_ROW = 5
MOST = 20.0


def distances(estimates: Mapping[str, Estimate]) -> Image.Image:
    """Plot each metric with its 95% interval as a bar next to those of real images and of noise.

    Each metric has its own scale. Noise has a number in place of its bar where that would be more than `MOST` times as
    high as the others.
    """
    rows = -(-len(estimates) // PER_ROW)
    figure = Figure(figsize=(2.1 * min(len(estimates), PER_ROW) + 0.6, 3.6 * rows + 0.4), dpi=120, layout="constrained")
    figure.suptitle("Generated images, and in their place real ones and noise", color=INK)
    panels = figure.subplots(rows, min(len(estimates), PER_ROW), squeeze=False).flat
    for axes, (name, estimate) in zip(panels, estimates.items(), strict=False):
        values = {"generated": estimate.value, "real": estimate.floor, "noise": estimate.ceiling}
        most = MOST * max(abs(estimate.value), abs(estimate.floor))
        for (kind, value), colour in zip(values.items(), COLOURS, strict=True):
            # With its interval, so that the label stands above both.
            interval = {"yerr": estimate.half_width, "capsize": 3} if kind == "generated" else {}
            style = {"color": colour, "ecolor": INK, "width": 0.7}
            bar = axes.bar([kind], [value if abs(value) <= most else 0.0], **style, **interval)
            label = f"{value:.3g}" if abs(value) <= most else f"{value:.3g}\n(too high\nto show)"
            axes.bar_label(bar, [label], padding=4, color=INK)
        axes.set_title(name.replace("_", " "), color=INK)
        axes.margins(y=0.15)
        axes.axhline(0.0, color=INK, linewidth=0.8)
    for axes in figure.axes:
        axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
        axes.tick_params(length=0, colors=INK)
        axes.set_yticks([])
    for axes in figure.axes[len(estimates) :]:
        axes.set_axis_off()
    return _render(figure)


def real_and_generated(real: Images, generated: Images) -> Image.Image:
    """Plot real and generated images, uint8 (n, H, W, C), side by side in nearly square grids, as many of each."""
    count = min(len(real), len(generated))
    height, width = generated.shape[1:3]
    columns = min(count, max(1, round((count * height / width) ** 0.5)))
    figure = Figure(figsize=(11.0, 5.8), dpi=120, layout="constrained")
    for axes, title, images in zip(
        figure.subplots(1, 2), ("real images", "generated images"), (real, generated), strict=True
    ):
        _show(axes, grid(images[:count], columns))
        axes.set_title(title, color=INK)
    return _render(figure)


def nearest_images(samples: Images, neighbours: Images) -> Image.Image:
    """Plot samples, (n, H, W, C), each with its nearest training images, (n, k, H, W, C), on its right."""
    panels = 2 if len(samples) > 1 else 1
    half = -(-len(samples) // panels)
    sheets = []
    for rows in (slice(0, half), slice(half, None))[:panels]:
        near = neighbours[rows]
        sheets += [grid(samples[rows], 1), grid(near.reshape(-1, *near.shape[2:]), near.shape[1])]
    widths = [sheet.width for sheet in sheets]
    height = 10.0 * max(sheet.height for sheet in sheets) / sum(widths)
    figure = Figure(figsize=(11.0, height + 1.0), dpi=120, layout="constrained")
    figure.suptitle("The samples nearest to the training images, the nearest of all first", color=INK)
    for column, (axes, sheet) in enumerate(
        zip(figure.subplots(1, len(sheets), width_ratios=widths), sheets, strict=True)
    ):
        _show(axes, sheet)
        axes.set_anchor("N")
        axes.set_title("nearest training images" if column % 2 else "sample", color=INK, fontsize=10)
    return _render(figure)


def _show(axes: Axes, image: Image.Image) -> None:
    # Transparent pixels are shown on white.
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(image.convert("RGBA"))
    axes.imshow(np.asarray(paper.convert("RGB")))
    axes.set_axis_off()


def _render(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return Image.fromarray(pixels).convert("RGB")
