"""Which parts of a picture become images of the dataset: `prepare.crop.kind`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np

from diffusion_core.choices import Choice

# Of one picture.
MOST_PARTS = 100
# left, top, right, bottom, in pixels. A part may reach beyond the picture, where it is white or transparent.
Box = tuple[float, float, float, float]


class Crop(Protocol):
    """Chooses parts of a picture."""

    @property
    def smallest(self) -> float:
        """The least side of a part, as a share of the largest centred part's."""
        ...

    def boxes(self, extent: tuple[float, float], shape: tuple[int, int], digest: bytes) -> Sequence[Box]:
        """Return the parts.

        Args:
            extent: width and height of the picture.
            shape: width and height of the result.
            digest: sha256 of the file, so that what is random depends on nothing else.
        """
        ...


@dataclass(frozen=True)
class Middle(Choice):
    """The largest centred part with the result's aspect ratio."""

    kind: Literal["middle"] = "middle"
    smallest: ClassVar[float] = 1.0

    def boxes(self, extent: tuple[float, float], shape: tuple[int, int], *_: object) -> Sequence[Box]:
        """Return the one part. If the aspect ratios are equal, its sides are those of the picture, exactly."""
        width, height = _largest(extent, shape)
        left, top = (extent[0] - width) / 2, (extent[1] - height) / 2
        return [(left, top, left + width, top + height)]


@dataclass(frozen=True)
class Random(Choice):
    """Parts of random size and position with the result's aspect ratio; one file makes `count` images.

    Attributes:
        count: parts of each picture.
        smallest: least side of a part, as a share of the largest; above 0, at most 1. The share is uniform above it.
        seed: of size and position, with the file's sha256. The parts of a file do not depend on other files.
    """

    kind: Literal["random"] = "random"
    count: int = 1
    smallest: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: an option is out of range.
        """
        if not 1 <= self.count <= MOST_PARTS:
            raise ValueError(f"count is {self.count}; it must be from 1 to {MOST_PARTS}")
        if not 0.0 < self.smallest <= 1.0:
            raise ValueError(f"smallest is {self.smallest}; it must be above 0 and at most 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be at least 0")

    def boxes(self, extent: tuple[float, float], shape: tuple[int, int], digest: bytes) -> Sequence[Box]:
        """Return `count` parts."""
        random = np.random.default_rng([self.seed, *digest])
        largest = _largest(extent, shape)
        found = []
        for share, across, down in random.uniform((self.smallest, 0.0, 0.0), 1.0, (self.count, 3)).tolist():
            width, height = share * largest[0], share * largest[1]
            left, top = across * (extent[0] - width), down * (extent[1] - height)
            found.append((left, top, left + width, top + height))
        return found


@dataclass(frozen=True)
class Pad(Choice):
    """The whole picture, with a border that gives it the result's aspect ratio: white or, for rgba, transparent."""

    kind: Literal["pad"] = "pad"
    smallest: ClassVar[float] = 1.0

    def boxes(self, extent: tuple[float, float], shape: tuple[int, int], *_: object) -> Sequence[Box]:
        """Return the smallest part that holds the picture."""
        width = max(extent[0], extent[1] * shape[0] / shape[1])
        height = max(extent[1], extent[0] * shape[1] / shape[0])
        left, top = (extent[0] - width) / 2, (extent[1] - height) / 2
        return [(left, top, left + width, top + height)]


@dataclass(frozen=True)
class Stretch(Choice):
    """The whole picture, stretched to the result's aspect ratio."""

    kind: Literal["stretch"] = "stretch"
    smallest: ClassVar[float] = 1.0

    def boxes(self, extent: tuple[float, float], *_: object) -> Sequence[Box]:
        """Return the picture's own corners."""
        return [(0.0, 0.0, *extent)]


CropChoice = Middle | Random | Pad | Stretch


def _largest(extent: tuple[float, float], shape: tuple[int, int]) -> tuple[float, float]:
    """Return width and height of the largest part with the aspect ratio of `shape`."""
    return min(extent[0], extent[1] * shape[0] / shape[1]), min(extent[1], extent[0] * shape[1] / shape[0])
