"""Images to train on where there is no network: photographs made by a formula, or those of a folder.

An image of the formula is a scene: a smooth colour field, a half-plane in front of it and three ellipses in front of
both, each with a smooth field of its own. So it has what photographs have and noise has not: edges, large areas of
correlated colours, most of its energy in low frequencies, and light from above.
"""

from pathlib import Path

import torch
from torch import Tensor

# Of each field: waves whose sum is its brightness, and waves whose sum is its second colour.
WAVES = 5
LAYERS = 5
# Of each layer: colour (3), tints of both sums (6), four numbers for each of their waves, shape (5).
NUMBERS = 3 + 6 + 2 * WAVES * 4 + 5
CHUNK = 500


def photographs(count: int, size: int, seed: int) -> Tensor:
    """Return images, uint8 (count, 3, size, size); image i depends on the seed and i alone."""
    # One row an image, so that a longer set begins with the images of a shorter one.
    numbers = torch.rand(count, LAYERS, NUMBERS, generator=torch.Generator().manual_seed(seed))
    return torch.cat([_render(rows, size) for rows in numbers.split(CHUNK)])


def read_folder(folder: Path, size: int, most: int) -> Tensor:
    """Return at most so many images of a folder and those below it, cropped to their centre and resized.

    Raises:
        ValueError: there are no images.
    """
    # A bare interpreter may lack both, and the formula needs neither.
    import numpy as np
    from PIL import Image, ImageOps

    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpeg", ".jpg", ".png", ".webp"))
    if not files:
        raise ValueError(f"{folder} has no images: name a folder with .jpg, .png or .webp files")
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    images = []
    for index in order[:most]:
        with Image.open(files[index]) as image:
            pixels = np.asarray(ImageOps.fit(image.convert("RGB"), (size, size)))
        images.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    return torch.stack(images)


def _render(numbers: Tensor, size: int) -> Tensor:
    """Return the scenes that numbers in [0, 1), (N, LAYERS, NUMBERS), stand for."""
    # In float64, so that no rounding to a byte depends on how many images are made together.
    numbers = numbers.double()
    sides = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    scene = _field(numbers[:, 0], sides)
    for layer in range(1, LAYERS):
        front = _field(numbers[:, layer], sides)
        cover, light = (_half_plane if layer == 1 else _ellipse)(numbers[:, layer, -5:], sides)
        scene = torch.lerp(scene, front + light[:, None], cover[:, None])
    daylight = 0.2 * (0.5 - sides)[:, None]
    return ((scene + daylight).clamp(0, 1) * 255).round().byte()


def _field(numbers: Tensor, sides: Tensor) -> Tensor:
    """Return smooth colours, (N, 3, H, W)."""
    colour, tints, waves = numbers[:, :3], numbers[:, 3:9].view(-1, 3, 2), numbers[:, 9:-5].view(-1, 2, WAVES, 4)
    # The channels share most of a colour and of a tint; the rest is what makes it no grey.
    colour = 0.25 + 0.5 * colour[:, :1] + 0.3 * (colour - 0.5)
    tints = torch.tensor([0.35, 0.05]).to(tints) + torch.tensor([0.25, 0.4]).to(tints) * (tints - 0.5)
    sums = _waves(waves, sides)
    return colour[:, :, None, None] + torch.einsum("nck,nkhw->nchw", tints, sums)


def _waves(numbers: Tensor, sides: Tensor) -> Tensor:
    """Return sums of cosines whose amplitude falls with their frequency, (N, 2, H, W)."""
    angle, phase, octave, amplitude = (each[..., None] for each in numbers.unbind(-1))
    frequency = 0.25 * 16.0**octave
    amplitude = amplitude / (1.0 + frequency)
    across = 2.0 * torch.pi * (frequency * torch.cos(2.0 * torch.pi * angle) * sides + phase)
    down = 2.0 * torch.pi * frequency * torch.sin(2.0 * torch.pi * angle) * sides
    # cos(a + b) = cos a cos b - sin a sin b: two products of matrices instead of a cosine a pixel and wave.
    cosines = torch.einsum("nkwh,nkwx->nkhx", amplitude * torch.cos(down), torch.cos(across))
    return cosines - torch.einsum("nkwh,nkwx->nkhx", amplitude * torch.sin(down), torch.sin(across))


def _half_plane(numbers: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    """Return which share of each pixel lies below a line, (N, H, W), and no light."""
    height, slope = 0.2 + 0.7 * numbers[:, 0, None, None], numbers[:, 1, None, None] - 0.5
    below = sides[:, None] - height - slope * (sides - 0.5)
    return _cover(below, sides), torch.zeros_like(below)


def _ellipse(numbers: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    """Return which share of each pixel lies in an ellipse, (N, H, W), and the light that falls on it."""
    x, y, width, height, angle = (each[:, None, None] for each in numbers.unbind(-1))
    width, height, angle = 0.06 + 0.3 * width, 0.06 + 0.3 * height, torch.pi * angle
    across, down = sides - x, sides[:, None] - y
    along = (across * torch.cos(angle) + down * torch.sin(angle)) / width
    beside = (down * torch.cos(angle) - across * torch.sin(angle)) / height
    radius = (along**2 + beside**2).sqrt()
    # From above and from the left; what is far outside is covered anyway.
    light = -0.2 * (across + 2.0 * down) / torch.maximum(width, height)
    return _cover((1.0 - radius) * torch.minimum(width, height), sides), light.clamp(-0.5, 0.5)


def _cover(depth: Tensor, sides: Tensor) -> Tensor:
    """Return the share of a pixel that is covered where its centre lies so deep in a shape: edges are a pixel wide."""
    return (depth * len(sides) + 0.5).clamp(0.0, 1.0)
