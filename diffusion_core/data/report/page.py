"""The page `plots/data.html`: a dataset as a person looks at it. It needs no other file, no network and no script."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from diffusion_core.counts import count_of
from diffusion_core.data.manifest import ManifestRow, Split
from diffusion_core.data.report.measures import Values
from diffusion_core.data.report.pictures import addresses
from diffusion_core.data.report.quarantine import Reason
from diffusion_core.data.report.statistics import Statistics, has_several_classes, largest
from diffusion_core.data.report.version import Version, by_hash

TEMPLATE = "page.html.jinja"

MOST_CLASSES, PER_CLASS = 30, 20
MOST_GROUPS, PER_GROUP = 12, 6
MOST_CHANGED = 20
MOST_ROWS = 12
BARS = 24

# Of a histogram, in units of its own.
WIDTH, HEIGHT = 240.0, 80.0

# What is shown as a histogram, and how it reads.
MEASURES = {
    "size": "square root of width times height of the original, in pixels",
    "brightness": "mean of gray, from 0 for black to 1 for white",
    "contrast": "standard deviation of gray",
    "red": "mean of red",
    "green": "mean of green",
    "blue": "mean of blue",
    "blur": "from 0 for sharp to 1 for blurred",
    "noise": "standard deviation of the noise",
}
# By Siddiqi's rule of thumb.
LITTLE_DRIFT, MUCH_DRIFT = 0.1, 0.25


@dataclass(frozen=True)
class Picture:
    """An image, its text for who does not see it, and what stands under it."""

    address: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Counts with a name, and the share of each in their sum."""

    title: str
    rows: list[tuple[str, int, float]]


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram, with what it counts."""

    x: float
    y: float
    height: float
    text: str


@dataclass(frozen=True)
class Histogram:
    """A histogram of a measure, and the outline of the earlier version's.

    Attributes:
        name: the measure.
        about: how it reads.
        text: the histogram in words.
        bars: the bars of this version.
        outline: a path in SVG, empty without an earlier version.
        low: the left end.
        high: the right end.
        count: the number of images.
    """

    name: str
    about: str
    text: str
    bars: list[Bar]
    outline: str
    low: str
    high: str
    count: int


@dataclass(frozen=True)
class Group:
    """Images with a title: of a class, near-duplicates, or those that were added."""

    title: str
    note: str
    pictures: list[Picture]


def page(statistics: Statistics, reasons: Sequence[Reason]) -> str:
    """Return the page as HTML."""
    environment = Environment(
        loader=PackageLoader(__package__),
        # Names of files are other people's.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    version, document = statistics.version, statistics.document()
    return environment.get_template(TEMPLATE).render(
        document=document,
        splits=get_args(Split),
        shape=version.image_shape,
        tables=_tables(statistics),
        histograms=_histograms(statistics),
        width=WIDTH,
        height=HEIGHT,
        bar=WIDTH / BARS,
        sample=len(statistics.sample),
        drift=[(name, value, _verdict(value)) for name, value in statistics.drift.items()],
        has_earlier=statistics.earlier is not None,
        is_redecoded=statistics.is_redecoded,
        changed=_changed(statistics),
        sheets=_sheets(version),
        class_count=len(version.classes),
        duplicates=_duplicates(statistics),
        group_count=len(statistics.duplicates),
        reasons=reasons,
        reason_count=len(statistics.counts["quarantined"]),
    )


def _tables(statistics: Statistics) -> list[Table]:
    counts = statistics.counts
    titles = {
        "class": "Class",
        "split": "Split",
        "suffix": "Suffix of the source",
        "mode": "Mode of the original",
        "size": "Size of the original",
    }
    # All classes, because the one that is missed may be small.
    rows = {name: largest(counts[name], MOST_ROWS) if name != "class" else counts[name] for name in titles}
    return [Table(title, _shares(rows[name])) for name, title in titles.items() if rows[name]]


def _shares(counts: Mapping[str, int]) -> list[tuple[str, int, float]]:
    total = sum(counts.values()) or 1
    return [(name, count, count / total) for name, count in counts.items()]


def _histograms(statistics: Statistics) -> list[Histogram]:
    found = []
    for name, about in MEASURES.items():
        values = _finite(statistics.measures.get(name))
        if len(values):
            found.append(_histogram(name, about, values, _finite(statistics.earlier_measures.get(name))))
    return found


def _finite(values: Values | None) -> Values:
    return np.empty(0) if values is None else values[np.isfinite(values)]


def _histogram(name: str, about: str, values: Values, earlier: Values) -> Histogram:
    both = np.concatenate([values, earlier])
    low, high = float(both.min()), float(both.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BARS + 1)
    counts, before = np.histogram(values, edges)[0], np.histogram(earlier, edges)[0]
    shares, old = counts / len(values), before / max(1, len(earlier))
    scale = HEIGHT / max(shares.max(), old.max())
    bars = [
        Bar(
            place * WIDTH / BARS,
            HEIGHT - share * scale,
            share * scale,
            f"{start:.3g} to {end:.3g}: {count_of(count, 'image')}",
        )
        for place, (count, share, start, end) in enumerate(zip(counts, shares, edges[:-1], edges[1:], strict=True))
        if count
    ]
    outline = ""
    if len(earlier):
        steps = " ".join(f"V {HEIGHT - share * scale:.2f} h {WIDTH / BARS:g}" for share in old)
        outline = f"M 0 {HEIGHT:g} {steps} V {HEIGHT:g}"
    text = f"{name}: median {np.median(values):.3g}, from {values.min():.3g} to {values.max():.3g}"
    return Histogram(name, about, text, bars, outline, f"{low:.3g}", f"{high:.3g}", len(values))


def _verdict(value: float) -> str:
    return "little" if value < LITTLE_DRIFT else "some" if value < MUCH_DRIFT else "much"


def _sheets(version: Version) -> list[Group]:
    """Return images of each class, or of all where there are no classes."""
    if not version.classes:
        chosen = by_hash(version.images, PER_CLASS)
        about = count_of(len(version.images), "image")
        return [Group("All images", about, _pictures(version, chosen))] if chosen else []
    by_label: dict[int | None, list[ManifestRow]] = {}
    for row in version.images:
        by_label.setdefault(row.label, []).append(row)
    return [
        Group(name, count_of(len(rows), "image"), _pictures(version, by_hash(rows, PER_CLASS)))
        for label, name in enumerate(version.classes[:MOST_CLASSES])
        if (rows := by_label.get(label))
    ]


def _duplicates(statistics: Statistics) -> list[Group]:
    version, found = statistics.version, []
    for group in statistics.duplicates[:MOST_GROUPS]:
        # One of each class before the others.
        shown = [*{row.label: row for row in reversed(group)}.values()][::-1]
        shown = [*shown, *(row for row in group if row not in shown)][:PER_GROUP]
        captions = [f"{row.source} ({version.class_of(row) or 'no class'}, {row.split or 'dropped'})" for row in shown]
        note = "of several classes: one is probably wrong" if has_several_classes(group) else ""
        hidden = f", {len(shown)} of them shown" if len(group) > len(shown) else ""
        found.append(Group(f"{len(group)} images{hidden}", note, _pictures(version, shown, captions)))
    return found


def _changed(statistics: Statistics) -> list[Group]:
    changes, earlier, version = statistics.changes, statistics.earlier, statistics.version
    if changes is None or earlier is None:
        return []
    relabelled = [row for row, _ in changes.relabelled[:MOST_CHANGED]]
    captions = [
        f"{row.source}: {was or 'no class'} to {version.class_of(row) or 'no class'}"
        for row, was in changes.relabelled[:MOST_CHANGED]
    ]
    return [
        _some("Added", len(changes.added), _pictures(version, by_hash(changes.added, MOST_CHANGED))),
        _some("Removed", len(changes.removed), _pictures(earlier, by_hash(changes.removed, MOST_CHANGED))),
        _some("Relabelled", len(changes.relabelled), _pictures(version, relabelled, captions)),
    ]


def _some(title: str, count: int, pictures: list[Picture]) -> Group:
    note = f", {len(pictures)} of them shown" if count > len(pictures) else ""
    return Group(title, f"{count_of(count, 'image')}{note}", pictures)


def _pictures(version: Version, rows: Sequence[ManifestRow], captions: Iterable[str] = ()) -> list[Picture]:
    if not rows:
        return []
    texts = [*captions] or [""] * len(rows)
    return [
        Picture(address, row.source, text)
        for address, row, text in zip(addresses(version.pixels(rows)), rows, texts, strict=True)
    ]
