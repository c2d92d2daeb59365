"""Training images without downloads: synthetic photographs, or those of a folder.

A synthetic photograph is a smooth colour field, a half-plane in front of it, and three ellipses in front of both. Each
has its own smooth colour field. Like photographs, it has edges, large areas of correlated colours, most of its energy
in low frequencies, and light from above.
"""

from pathlib import Path

import torch
from torch import Tensor

# Each field is the sum of this many waves for the brightness, and of as many for a second colour.
WAVES = 5
LAYERS = 5
# Random numbers of each layer: colour (3), tints of both sums (6), four for each wave, shape (5).
NUMBERS = 3 + 6 + 2 * WAVES * 4 + 5
CHUNK = 500


def photographs(count: int, size: int, seed: int) -> Tensor:
    """Return images, uint8 (count, 3, size, size); image i depends only on the seed and i."""
    # One row per image, so that a greater count gives the same first images.
    numbers = torch.rand(count, LAYERS, NUMBERS, generator=torch.Generator().manual_seed(seed))
    return torch.cat([_render(rows, size) for rows in numbers.split(CHUNK)])


def read_folder(folder: Path, size: int, most: int) -> Tensor:
    """Return at most `most` images below a folder, cropped to the centre and resized, uint8 (N, 3, size, size).

    Raises:
        ValueError: there are no images.
    """
    # Imported here, because synthetic photographs need neither.
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
    """Return the scenes, uint8 (N, 3, H, W), of random numbers in [0, 1), (N, LAYERS, NUMBERS)."""
    # In float64, so that rounding to bytes does not depend on the number of images.
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
    # The channels share most of a colour and of a tint; the differences add saturation.
    colour = 0.25 + 0.5 * colour[:, :1] + 0.3 * (colour - 0.5)
    tints = torch.tensor([0.35, 0.05]).to(tints) + torch.tensor([0.25, 0.4]).to(tints) * (tints - 0.5)
    sums = _waves(waves, sides)
    return colour[:, :, None, None] + torch.einsum("nck,nkhw->nchw", tints, sums)


def _waves(numbers: Tensor, sides: Tensor) -> Tensor:
    """Return sums of cosines with amplitudes that decrease with frequency, (N, 2, H, W)."""
    angle, phase, octave, amplitude = (each[..., None] for each in numbers.unbind(-1))
    frequency = 0.25 * 16.0**octave
    amplitude = amplitude / (1.0 + frequency)
    across = 2.0 * torch.pi * (frequency * torch.cos(2.0 * torch.pi * angle) * sides + phase)
    down = 2.0 * torch.pi * frequency * torch.sin(2.0 * torch.pi * angle) * sides
    # cos(a + b) = cos a cos b - sin a sin b: two matrix products instead of a cosine per pixel and wave.
    cosines = torch.einsum("nkwh,nkwx->nkhx", amplitude * torch.cos(down), torch.cos(across))
    return cosines - torch.einsum("nkwh,nkwx->nkhx", amplitude * torch.sin(down), torch.sin(across))


def _half_plane(numbers: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of each pixel below a line, (N, H, W), and zeros for the light."""
    height, slope = 0.2 + 0.7 * numbers[:, 0, None, None], numbers[:, 1, None, None] - 0.5
    below = sides[:, None] - height - slope * (sides - 0.5)
    return _cover(below, sides), torch.zeros_like(below)


def _ellipse(numbers: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of each pixel in an ellipse, (N, H, W), and the light on it, (N, H, W)."""
    x, y, width, height, angle = (each[:, None, None] for each in numbers.unbind(-1))
    width, height, angle = 0.06 + 0.3 * width, 0.06 + 0.3 * height, torch.pi * angle
    across, down = sides - x, sides[:, None] - y
    along = (across * torch.cos(angle) + down * torch.sin(angle)) / width
    beside = (down * torch.cos(angle) - across * torch.sin(angle)) / height
    radius = (along**2 + beside**2).sqrt()
    # Light from above and from the left; the clamp affects only pixels far outside.
    light = -0.2 * (across + 2.0 * down) / torch.maximum(width, height)
    return _cover((1.0 - radius) * torch.minimum(width, height), sides), light.clamp(-0.5, 0.5)


def _cover(depth: Tensor, sides: Tensor) -> Tensor:
    """Return the covered share of a pixel with its centre at `depth` inside a shape; edges are one pixel wide."""
    return (depth * len(sides) + 0.5).clamp(0.0, 1.0)
