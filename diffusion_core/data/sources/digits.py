"""The digits of scikit-learn, as a folder of images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from diffusion_core.choices import Choice


@dataclass(frozen=True)
class Digits(Choice):
    """1,797 handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak 1998), with one folder per digit.

    The 17 gray levels of the original (0 to 16) are scaled to 8 bits: 0 is background, 255 is ink.
    """

    kind: Literal["digits"] = "digits"

    def fetch(self, folder: Path, **_: object) -> int:
        """Write `<digit>/<index in the dataset>.png` and return 1797."""
        # Imported here, because only this source needs scikit-learn.
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        for name in digits.target_names:
            (folder / str(name)).mkdir()
        for position, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
            Image.fromarray(image).save(folder / str(label) / f"{position:04d}.png")
        return len(pixels)
