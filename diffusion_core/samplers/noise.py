"""Noise for each image: that of image i depends only on (seed, i), not on the batch or its order."""

from collections.abc import Iterable

import torch
from torch import Tensor

from diffusion_core.randomness import generator


class ImageNoise:
    """A source of noise with one generator per image.

    The noise is generated on the CPU, so that it is the same for every device.

    Args:
        seed: the seed of all samples.
        indices: the indices of the batch's images among all samples, in order.
    """

    def __init__(self, seed: int, indices: Iterable[int]) -> None:
        self._generators = [generator(seed, index, "sample") for index in indices]

    @classmethod
    def of(cls, keys: Iterable[tuple[int, int]]) -> "ImageNoise":
        """Return the source of a batch whose images have seeds of their own: the seed and the index of each."""
        noise = cls(0, ())
        noise._generators = [generator(seed, index, "sample") for seed, index in keys]
        return noise

    def __call__(self, like: Tensor) -> Tensor:
        """Return the next noise of each image, with the shape, (B, ...), dtype and device of `like`.

        Raises:
            ValueError: the numbers of images and indices differ.
        """
        if len(like) != len(self._generators):
            raise ValueError(f"the batch has {len(like)} images; this source was made for {len(self._generators)}")
        # Filling one tensor takes half the time of stacking many small tensors.
        noise = torch.empty(like.shape, dtype=torch.float32)
        for image, generator_of_image in zip(noise.unbind(), self._generators, strict=True):
            image.normal_(generator=generator_of_image)
        return noise.to(like)
