"""The numbers of a dataset: counts of its manifest, measures of a sample, and what changed since the last version."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

from diffusion_core.data.manifest import ManifestRow, Split
from diffusion_core.data.report.changes import Changes
from diffusion_core.data.report.drift import drift
from diffusion_core.data.report.measures import Values, measures, sizes
from diffusion_core.data.report.version import Pixels, Version, by_hash

# Images that are measured.
SAMPLE = 2_000
# Entries of each count in metrics/data.json; the rest is one entry.
MOST_ENTRIES = 30
OTHERS = "others"
LONGEST_REASON = 60


@dataclass(frozen=True)
class Statistics:
    """The numbers of a version, and those of the earlier one where there is one.

    Attributes:
        version: the version.
        earlier: the earlier version, or None.
        sample: the images that are measured.
        measures: the measures of the sample, see `measures`, `size`, and `features` where they are known, (n, F).
        earlier_measures: likewise of the earlier version; empty if there is none.
        drift: how far each measure has drifted; empty if there is no earlier version.
        changes: what differs from the earlier version, or None.
        duplicates: groups of near-duplicates: the first of each, and the others.
    """

    version: Version
    earlier: Version | None
    sample: list[ManifestRow]
    measures: dict[str, Values]
    earlier_measures: dict[str, Values]
    drift: dict[str, float]
    changes: Changes | None
    duplicates: list[list[ManifestRow]]

    @classmethod
    def of(
        cls, version: Version, earlier: Version | None, features: Callable[[Pixels], Values | None] | None = None
    ) -> "Statistics":
        """Measure a version, and compare it with the earlier one.

        Pixels are not compared where another decoder made them, or the same one by other settings.

        Args:
            version: the version.
            earlier: the earlier one, or None.
            features: returns the features, (n, F), of images of the version's shape; or None.
        """
        sample = by_hash(version.images, SAMPLE)
        now, before, shared = _measured(version, sample), {}, 0
        if earlier is not None:
            earlier_sample = by_hash(earlier.images, SAMPLE)
            is_alike = earlier.decoder == version.decoder
            is_same = is_alike and list(map(_file, sample)) == list(map(_file, earlier_sample))
            before = now if is_same else _measured(earlier, earlier_sample)
            before = before if is_alike else {"size": before["size"]}
            if features is not None and is_alike:
                found = features(version.pixels(sample))
                others = found if is_same else features(earlier.pixels(earlier_sample))
                if found is not None and others is not None:
                    now["features"], before["features"] = found, others
            shared = len(set(map(_file, sample)) & set(map(_file, earlier_sample)))
        return cls(
            version,
            earlier,
            sample,
            now,
            before,
            drift(before, now, shared),
            None if earlier is None else Changes.between(earlier, version),
            _groups(version.rows),
        )

    @property
    def is_redecoded(self) -> bool:
        """Whether another decoder, or the same one by other settings, made the earlier pixels."""
        return self.earlier is not None and self.earlier.decoder != self.version.decoder

    @property
    def quarantined(self) -> list[ManifestRow]:
        """The rows of the files that are not images."""
        return [row for row in self.version.rows if row.quarantined is not None]

    @property
    def files(self) -> int:
        """The number of files; one file may make several images."""
        return len({row.source for row in self.version.rows})

    @property
    def copies(self) -> list[ManifestRow]:
        """The near-duplicates of other images."""
        return [row for row in self.version.rows if row.duplicate_of is not None]

    @property
    def duplicates_share(self) -> float:
        """Near-duplicates of other images as a share of all that decode."""
        decoded = sum(row.quarantined is None for row in self.version.rows)
        return len(self.copies) / decoded if decoded else 0.0

    @property
    def class_counts(self) -> dict[str, int]:
        """Images of each class; empty if there are no classes."""
        found = Counter(row.label for row in self.version.images)
        return {name: found[label] for label, name in enumerate(self.version.classes)}

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """The number of images of each split, class, suffix, mode and size, and of files of each reason."""
        images = self.version.images
        split = Counter(row.split for row in images)
        return {
            "split": {name: split[name] for name in get_args(Split)},
            "class": self.class_counts,
            "suffix": _counted(suffix(row.source) for row in images),
            "mode": _counted(row.mode or "unknown" for row in images),
            "size": _counted(f"{row.width} x {row.height}" for row in images),
            "quarantined": _counted(pattern(row.quarantined or "") for row in self.quarantined),
        }

    def document(self) -> dict[str, Any]:
        """Return the content of `metrics/data.json`."""
        rows, counts = self.version.rows, self.counts
        return {
            "files": self.files,
            "images": len(self.version.images),
            "dropped": sum(row.quarantined is None and row.split is None for row in rows),
            "quarantined": len(self.quarantined),
            "quarantined_share": len(self.quarantined) / self.files if rows else 0.0,
            "duplicates": len(self.copies),
            "duplicates_share": self.duplicates_share,
            "split": counts["split"],
            "class": largest(counts["class"], MOST_ENTRIES),
            "suffix": largest(counts["suffix"], MOST_ENTRIES),
            "mode": largest(counts["mode"], MOST_ENTRIES),
            "reason": largest(_shortened(counts["quarantined"]), MOST_ENTRIES),
            "changes": {} if self.changes is None else self.changes.counts(),
            "drift": self.drift,
        }


def suffix(source: str) -> str:
    """Return the suffix of a file's name, without its dot and in lower case."""
    stem, _, found = source.rpartition("/")[2].rpartition(".")
    return found.lower() if stem and found else "none"


def pattern(reason: str) -> str:
    """Return a reason with N for each number, so that equal reasons can be counted."""
    return re.sub(r"\b\d+(\.\d+)?\b", "N", reason)


def largest(counts: Mapping[str, int], most: int) -> dict[str, int]:
    """Return counts in their order, with the smallest of more than `most` as one entry."""
    if len(counts) <= most:
        return dict(counts)
    kept = {name for name, _ in Counter(counts).most_common(most - 1)}
    rest = sum(count for name, count in counts.items() if name not in kept)
    found = {name: count for name, count in counts.items() if name in kept}
    return found | {OTHERS: found.get(OTHERS, 0) + rest}


def _shortened(counts: Mapping[str, int]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for name, count in counts.items():
        found[name if len(name) <= LONGEST_REASON else f"{name[: LONGEST_REASON - 3]}..."] += count
    return dict(found)


def _counted(names: Iterable[str]) -> dict[str, int]:
    """Return the number of each name, the largest first."""
    return dict(sorted(Counter(names).items(), key=lambda pair: (-pair[1], pair[0])))


def _file(row: ManifestRow) -> tuple[str, int]:
    return row.sha256, row.part


def _measured(version: Version, sample: Sequence[ManifestRow]) -> dict[str, Values]:
    return {"size": sizes(sample), **measures(version, sample)}


def _groups(rows: Sequence[ManifestRow]) -> list[list[ManifestRow]]:
    """Return the groups of near-duplicates, those that have several classes first, then the largest."""
    firsts = {row.duplicate_of for row in rows}
    groups: dict[str, list[ManifestRow]] = defaultdict(list)
    for row in rows:
        if row.duplicate_of is not None or row.source in firsts:
            groups[row.duplicate_of or row.source].append(row)
    return sorted(groups.values(), key=lambda group: (not has_several_classes(group), -len(group), group[0].source))


def has_several_classes(group: Sequence[ManifestRow]) -> bool:
    """Return whether near-duplicates have different classes, of which one is probably wrong."""
    return len({row.label for row in group}) > 1
