"""Random views of a batch of images: what training changes in an image without changing what it shows.

Every function takes and returns (B, C, H, W) in [-1, 1], treats each image by itself, and draws from PyTorch's
generator of the CPU whatever the device of the images. No view mirrors an image: a mirrored digit or letter is another
one or none, and nothing here knows the domain.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def shifted(images: Tensor, share: float = 0.125) -> Tensor:
    """Shift each image by whole pixels, at most `share` of its height and of its width; the border repeats.

    Whole pixels, because interpolation would blur and so teach the features to overlook blur.
    """
    batch, _, height, width = images.shape
    down, across = (max(1, round(share * side)) for side in (height, width))
    padded = F.pad(images, (across, across, down, down), mode="replicate")
    rows = torch.randint(2 * down + 1, (batch, 1)) + torch.arange(height)
    columns = torch.randint(2 * across + 1, (batch, 1)) + torch.arange(width)
    which = torch.arange(batch)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def cropped(images: Tensor, smallest: float = 0.5) -> Tensor:
    """Crop each image to a random part of its own shape, `smallest` to 1 of it a side, and scale it back."""
    batch = len(images)
    side = smallest + (1.0 - smallest) * torch.rand(batch)
    centre = (1.0 - side) * (2.0 * torch.rand(2, batch) - 1.0)
    affine = torch.zeros(batch, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = side
    affine[:, :, 2] = centre.T
    grid = F.affine_grid(affine, list(images.shape), align_corners=False).to(images)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def relit(images: Tensor, strength: float = 0.4) -> Tensor:
    """Scale each image's contrast about its mean by 1 +- `strength` and move its brightness by +- `strength` / 2.

    A fourth channel, which is alpha, stays: light makes nothing transparent.
    """
    contrast, brightness = (2.0 * torch.rand(2, len(images), 1, 1, 1) - 1.0).to(images)
    colour, alpha = images[:, :3], images[:, 3:]
    mean = colour.mean(dim=(1, 2, 3), keepdim=True)
    changed = (colour - mean) * (1.0 + strength * contrast) + mean + 0.5 * strength * brightness
    return torch.cat((changed, alpha), dim=1)
