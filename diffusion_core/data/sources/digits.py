"""The digits of scikit-learn, as image files."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import numpy as np

from diffusion_core.choices import Choice
from diffusion_core.data.sources.item import Item
from diffusion_core.data.sources.png import WRITTEN_BY, as_png


@dataclass(frozen=True)
class Digits(Choice):
    """1,797 handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak 1998), with one folder per digit.

    The 17 gray levels of the original (0 to 16) are scaled to 8 bits: 0 is background, 255 is ink.
    """

    kind: Literal["digits"] = "digits"

    def items(self, *_: object) -> list[Item]:
        """Return `<digit>/<index in the dataset>.png` for each."""
        # Imported here, because only this source needs scikit-learn.
        from sklearn.datasets import load_digits

        stamp = f"scikit-learn {version('scikit-learn')}, {WRITTEN_BY}"
        names = sorted(f"{label}/{position:04d}.png" for position, label in enumerate(load_digits().target))
        return [Item(name, None, stamp) for name in names]

    def contents(self, wanted: Sequence[Item], *_: object) -> Generator[bytes, None, None]:
        """Yield each as a PNG."""
        from sklearn.datasets import load_digits

        pixels = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)
        for item in wanted:
            yield as_png(pixels[int(item.path[2:6])])
