"""A network that somebody else trained, behind the resizing and scaling of its images.

Images are resized as clean-fid does (Parmar et al. 2022, https://arxiv.org/abs/2104.11222): bicubic with antialiasing,
in float32, clipped to [0, 255] and not rounded. With antialiasing, PyTorch's filter is Pillow's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_core.metrics.features import Extractor


class Resized(Extractor):
    """The features of images of any size and 1, 3 or 4 channels.

    Gray images become RGB. Alpha is dropped, because colours are multiplied by it before.

    Args:
        network: returns features, (B, ...), of (B, 3, size, size); they are flattened.
        size: height and width that the network takes.
        mean: subtracted from each channel, of values in [0, 255].
        std: what each channel is divided by then.

    Attributes:
        features: length of the feature vector.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        with torch.inference_mode():
            self.features = int(network.eval()(torch.zeros(2, 3, size, size)).flatten(1).shape[1])

    def forward(self, images: Tensor) -> Tensor:
        """Return the features, (B, features), of images in [-1, 1], (B, C, H, W)."""
        pixels = resized((images[:, :3] + 1.0) * 127.5, self.size)
        pixels = pixels.expand(-1, 3, -1, -1)
        found: Tensor = self.network((pixels - self.mean) / self.std)
        return found.flatten(1)


def resized(pixels: Tensor, size: int) -> Tensor:
    """Return images with values in [0, 255], (B, C, H, W), as (B, C, size, size); see the module."""
    scaled = F.interpolate(pixels, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return scaled.clamp(0.0, 255.0)
