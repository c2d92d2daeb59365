"""The digits that scikit-learn ships, as a user's images would lie on a disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from diffusion_core.choices import Choice


@dataclass(frozen=True)
class Digits(Choice):
    """1,797 handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak 1998), in one folder a digit.

    The 17 shades of the original (0 to 16) become 8-bit gray: 0 is black paper, 255 is ink.
    """

    kind: Literal["digits"] = "digits"

    def fetch(self, folder: Path, **_: object) -> int:
        """Write `<digit>/<position in the data set>.png` and return 1797."""
        # Only this source should pay for the import of scikit-learn.
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        for name in digits.target_names:
            (folder / str(name)).mkdir()
        for position, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
            Image.fromarray(image).save(folder / str(label) / f"{position:04d}.png")
        return len(pixels)
