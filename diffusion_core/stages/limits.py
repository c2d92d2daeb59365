"""The gate of the images: what crosses a limit in `prepare.limits` does not replace the earlier version."""

from collections.abc import Iterator, Sequence

import numpy as np

from diffusion_core.config.settings import DataLimits
from diffusion_core.counts import count_of
from diffusion_core.data.manifest import ManifestRow
from diffusion_core.data.report.statistics import Statistics
from diffusion_core.errors import UserError

# Files that a message names.
SHOWN = 3


def check_decoded(limits: DataLimits, names: Sequence[str], rows: Sequence[ManifestRow]) -> None:
    """Check how many files were left out, before classes and splits are made of the rest.

    Args:
        limits: the limits.
        names: the path of each file in the source.
        rows: the row of each.

    Raises:
        UserError: too many were.
    """
    reasons = [(name, row.quarantined) for name, row in zip(names, rows, strict=True) if row.quarantined is not None]
    most, share = limits.max_quarantined_share, len(reasons) / len(rows)
    # Where no file decodes, the stage says so itself.
    if most is not None and share > most and len(reasons) < len(rows):
        raise UserError(
            _crossed(
                "max_quarantined_share",
                most,
                f"{len(reasons)} of {len(rows)} files were left out ({share:.3g})",
                [f"{name}: {reason}" for name, reason in reasons],
                "fix or remove these files, or raise the limit",
            )
        )


def check_dataset(limits: DataLimits, statistics: Statistics) -> None:
    """Check the dataset.

    Raises:
        UserError: limits are crossed; its message names all of them.
    """
    if crossed := [*_too_few(limits, statistics), *_too_many(limits, statistics)]:
        raise UserError("; ".join(crossed))


def _too_few(limits: DataLimits, statistics: Statistics) -> Iterator[str]:
    images, classes = len(statistics.version.images), statistics.class_counts
    if limits.min_images is not None and images < limits.min_images:
        yield _crossed(
            "min_images",
            limits.min_images,
            f"the dataset has {count_of(images, 'image')} of {count_of(statistics.files, 'file')}",
            [f"{row.source}: {row.quarantined}" for row in statistics.quarantined],
            "bring more images, or lower the limit",
        )
    least = limits.min_images_per_class
    if least is not None and (small := sorted((count, name) for name, count in classes.items() if count < least)):
        yield _crossed(
            "min_images_per_class",
            least,
            f"{len(small)} of {len(classes)} classes have fewer",
            [f"{name}: {count_of(count, 'image')}" for count, name in small],
            "bring more images of these, remove their folders, or lower the limit",
        )


def _too_many(limits: DataLimits, statistics: Statistics) -> Iterator[str]:
    most, share = limits.max_duplicates_share, statistics.duplicates_share
    if most is not None and share > most:
        copies = statistics.copies
        yield _crossed(
            "max_duplicates_share",
            most,
            f"{len(copies):,} of the images are near-duplicates of others ({share:.3g})",
            [f"{row.source}: like {row.duplicate_of}" for row in copies],
            "remove these files, or raise the limit",
        )
    if limits.max_drift is not None and statistics.drift:
        name = max(statistics.drift, key=lambda each: statistics.drift[each])
        if (value := statistics.drift[name]) > limits.max_drift:
            yield _crossed(
                "max_drift",
                limits.max_drift,
                f"{name} of the images drifted by {value:.3g} from the earlier version",
                _farthest(statistics, name),
                "check the source, or raise the limit for one run",
            )


def _farthest(statistics: Statistics, name: str) -> list[str]:
    """Return the images whose measure is farthest from the earlier median, the farthest first."""
    values = statistics.measures[name]
    away = values - np.median(statistics.earlier_measures[name], axis=0)
    # Features have several columns.
    distance = np.linalg.norm(away.reshape(len(away), -1), axis=1)
    order = np.argsort(-distance, kind="stable")[:SHOWN]
    return [f"{statistics.sample[index].source}: {distance[index]:.3g} from the earlier median" for index in order]


def _crossed(key: str, limit: float, found: str, files: Sequence[str], remedy: str) -> str:
    shown = f": {'; '.join(files[:SHOWN])}" if files else ""
    return f"prepare.limits.{key} is {limit:g}, and {found}{shown}: {remedy}"
