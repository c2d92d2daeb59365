"""The validation loss of the averaged weights during a training, by noise level, and the weights where it was lowest.

It is measured of the same images, timesteps and noise each time, so that its changes are those of the weights. It costs
no more than a share of the training, counted in passes through the network, and so depends on no clock.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.randomness import derive_seed, generator
from diffusion_core.runtime.device import to_device
from diffusion_core.training.data import TrainingData
from diffusion_core.training.randomness import StepRandomness

# Passes of an image through the network: forward, backward as two, and self-conditioning of every second image.
PASSES_TRAINED, PASSES_VALIDATED = 3.5, 1.5
# More images would say little more.
MOST_IMAGES = 2048
# Images that share a generator; more of them at a time would give other random numbers.
BLOCK = 256
# Of the timesteps; the first has the least noise.
QUARTERS = 4
COLUMNS = ("images", "loss", *(f"loss_quarter_{number + 1}" for number in range(QUARTERS)))

Row = dict[str, float]


class Validation:
    """Measures the loss of some validation images, and keeps the weights of the lowest.

    Args:
        data: the validation images, uint8.
        every_images: images of the training between two measurements.
        share: of the training's computation that measurements may take, in [0, 1); 0 for none.
        seed: seed of the choice of images and of all noise.

    Attributes:
        count: images that are measured.
        rows: a dict for each measurement with the keys of `COLUMNS`.
        best: the weights where the loss was lowest, on the host; empty before the first measurement.
    """

    def __init__(self, data: TrainingData, every_images: int, share: float, seed: int) -> None:
        self.data = data
        affordable = int(share * every_images * PASSES_TRAINED / PASSES_VALIDATED)
        self.count = min(len(data), affordable, MOST_IMAGES)
        self.seed = derive_seed(seed, "validation")
        self.rows: list[Row] = []
        self.best: dict[str, Tensor] = {}
        self._chosen = torch.randperm(len(data), generator=generator(self.seed, "images"))[: self.count]

    @property
    def best_row(self) -> Row | None:
        """The row with the lowest loss, of equal ones the first; None if no loss was finite."""
        finite = [row for row in self.rows if math.isfinite(row["loss"])]
        return min(finite, key=lambda row: row["loss"], default=None)

    def measure(self, diffusion: GaussianDiffusion, images: int, batch_size: int, dtype: torch.dtype) -> Row | None:
        """Measure a process after that number of images of training, and keep its weights if it is the best so far.

        Args:
            diffusion: the process with the averaged weights, in eval mode.
            images: images seen so far.
            batch_size: images at a time, at most.
            dtype: of the network's matrix products.

        Returns:
            The new row, or None if `count` is 0.
        """
        if self.count == 0:
            return None
        losses = self.losses(diffusion, batch_size, dtype)
        # Images are in the order of their timesteps.
        parts = {f"loss_quarter_{number + 1}": part for number, part in enumerate(losses.tensor_split(QUARTERS))}
        row = {"images": images, "loss": float(losses.mean())}
        row |= {name: float(part.mean()) if len(part) else math.nan for name, part in parts.items()}
        self.rows.append(row)
        if self.best_row is row:
            weights = diffusion.model.state_dict()
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        return row

    @torch.inference_mode()
    def losses(self, diffusion: GaussianDiffusion, batch_size: int, dtype: torch.dtype) -> Tensor:
        """Return the loss of each chosen image, float64 (count,).

        Timesteps are spread evenly, t_i = floor((i + 1/2) T / count), so that all noise levels count alike.
        """
        times = ((torch.arange(self.count) + 0.5) * diffusion.num_timesteps / self.count).long()
        found = []
        for start, chosen in zip(range(0, self.count, BLOCK), self._chosen.split(BLOCK), strict=True):
            random = StepRandomness.of(diffusion, len(chosen), self.seed, start)
            random = replace(random, times=times[start : start + BLOCK])
            for first in range(0, len(chosen), batch_size):
                part = range(first, min(first + batch_size, len(chosen)))
                images, labels = self.data.batch(chosen[first : part.stop])
                found.append(_losses(diffusion, images, labels, random.part(part), dtype))
        return torch.cat(found)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return what a checkpoint keeps of it."""
        return {"best": self.best} if self.best else {}

    def restore(self, rows: list[Row], best: Mapping[str, Tensor], weights: Mapping[str, Any]) -> None:
        """Take the rows and the weights of a checkpoint.

        Args:
            rows: as in `rows`.
            best: as in `best`.
            weights: the weights of the network to compare with.

        Raises:
            ValueError: the weights are of another network, or missing.
        """
        self.rows = [{name: float(row[name]) for name in COLUMNS} | {"images": int(row["images"])} for row in rows]
        shapes = {name: tensor.shape for name, tensor in best.items()}
        expected = {name: tensor.shape for name, tensor in weights.items()} if self.best_row else {}
        if shapes != expected:
            raise ValueError("its best weights are not those of this network")
        self.best = dict(best)


def _losses(
    diffusion: GaussianDiffusion,
    images: Tensor,
    labels: Tensor | None,
    random: StepRandomness,
    dtype: torch.dtype,
) -> Tensor:
    device = diffusion.device
    classes = None if diffusion.num_classes is None else diffusion.checked_classes(labels, len(images))
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        losses: Tensor = diffusion(
            to_device(images, device).float() / 255.0,
            random.noise,
            times=to_device(random.times, device),
            # The noise already includes offset noise.
            offset_noise_strength=0.0,
            loss_reduction="none",
            classes=classes,
            self_cond_mask=random.self_cond_mask,
            unlabelled=random.unlabelled,
        )
    return losses.double().cpu()
