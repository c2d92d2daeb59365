"""Noise by image: what image i gets depends on (seed, i) alone, whatever the batch, its size and the order."""

from collections.abc import Iterable

import torch
from torch import Tensor

from diffusion_core.randomness import generator


class ImageNoise:
    """A source of noise with one generator an image.

    Drawn on the CPU, so that every device gets the same numbers.

    Args:
        seed: of the whole set of samples.
        indices: which images of that set the batch holds, in its order.
    """

    def __init__(self, seed: int, indices: Iterable[int]) -> None:
        self._generators = [generator(seed, index, "sample") for index in indices]

    def __call__(self, like: Tensor) -> Tensor:
        """Return the next noise of each image, shaped like `like`, (B, ...).

        Raises:
            ValueError: the batch has another number of images than there are indices.
        """
        if len(like) != len(self._generators):
            raise ValueError(f"the batch has {len(like)} images; this source was made for {len(self._generators)}")
        # Into one tensor, which takes half the time of a stack of small ones.
        draws = torch.empty(like.shape, dtype=torch.float32)
        for image, generator_of_image in zip(draws.unbind(), self._generators, strict=True):
            image.normal_(generator=generator_of_image)
        return draws.to(like)
