"""What was added, removed and relabelled since the earlier version of the dataset."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from diffusion_core.data.manifest import ManifestRow
from diffusion_core.data.report.version import Version


@dataclass(frozen=True)
class Changes:
    """Images that differ between two versions. The bytes of a file say which image it is, and not its name.

    Attributes:
        added: images of the new version that the earlier one does not have.
        removed: images of the earlier version that the new one does not have.
        relabelled: images of the new version with another class than before, each with its class before.
    """

    added: list[ManifestRow]
    removed: list[ManifestRow]
    relabelled: list[tuple[ManifestRow, str | None]]

    @classmethod
    def between(cls, earlier: Version, now: Version) -> "Changes":
        """Compare two versions; of equal files each is counted."""
        before, after = _by_file(earlier), _by_file(now)
        added, removed, relabelled = [], [], []
        for sha256 in before.keys() | after.keys():
            old, new = before.get(sha256, []), after.get(sha256, [])
            if [*map(earlier.class_of, old)] == [*map(now.class_of, new)]:
                continue
            same = Counter(map(earlier.class_of, old)) & Counter(map(now.class_of, new))
            old, new = _without(old, earlier, same), _without(new, now, same)
            both = min(len(old), len(new))
            relabelled += [(row, earlier.class_of(was)) for row, was in zip(new[:both], old[:both], strict=True)]
            added += new[both:]
            removed += old[both:]
        return cls(
            sorted(added, key=lambda row: row.source),
            sorted(removed, key=lambda row: row.source),
            sorted(relabelled, key=lambda pair: pair[0].source),
        )

    def counts(self) -> dict[str, int]:
        """Return the number of each."""
        return {"added": len(self.added), "removed": len(self.removed), "relabelled": len(self.relabelled)}


def _by_file(version: Version) -> dict[str, list[ManifestRow]]:
    found: dict[str, list[ManifestRow]] = defaultdict(list)
    for row in version.images:
        found[row.sha256].append(row)
    return found


def _without(rows: list[ManifestRow], version: Version, same: Mapping[str | None, int]) -> list[ManifestRow]:
    """Return the rows without those that have their class in both versions."""
    left, rest = Counter(same), []
    for row in rows:
        if left[version.class_of(row)]:
            left[version.class_of(row)] -= 1
        else:
            rest.append(row)
    return rest
