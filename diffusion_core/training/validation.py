"""The validation loss of the averaged weights during a training, by noise level, and the weights where it was lowest.

It is measured of the same images, timesteps and noise each time, so that its changes are those of the weights. How many
images are measured follows from a share of the training's passes through the network, and so from no clock.
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
# Standard errors that chance hardly exceeds.
SURE = 2.0
# Of the timesteps; the first has the least noise.
QUARTERS = 4
COLUMNS = ("images", "loss", *(f"loss_quarter_{number + 1}" for number in range(QUARTERS)))

Row = dict[str, float]


def affordable_images(images: int, every_images: int, share: float) -> int:
    """Return how many images a measurement may have; the arguments are those of `Validation`."""
    return min(int(share * min(images, every_images) * PASSES_TRAINED / PASSES_VALIDATED), MOST_IMAGES)


def share_of(count: int, images: int) -> float:
    """Return a share with which a training of `images` images affords `count` of them, whatever the rounding."""
    return (count + 0.5) * PASSES_VALIDATED / PASSES_TRAINED / images


class Validation:
    """Measures the loss of some validation images, and keeps the weights of the lowest.

    Args:
        data: the validation images, uint8.
        images: budget of the training, in images. It has a part only where it is below `every_images`, so that a
            longer training measures the same.
        every_images: images of the training between two measurements.
        share: of the training's computation that measurements may take, in [0, 1); 0 for none. The one at the end may
            be one more.
        seed: seed of the choice of images and of all noise.

    Attributes:
        count: images that are measured.
        rows: a dict for each measurement with the keys of `COLUMNS`.
        best: the weights where the loss was lowest, on the host; empty before the first measurement.
    """

    def __init__(self, data: TrainingData, images: int, every_images: int, share: float, seed: int) -> None:
        self.data = data
        self.count = min(len(data), affordable_images(images, every_images, share))
        self.seed = derive_seed(seed, "validation")
        self.rows: list[Row] = []
        self.best: dict[str, Tensor] = {}
        self._best_losses: list[float] = []
        self._last_losses: list[float] = []
        self._chosen = torch.randperm(len(data), generator=generator(self.seed, "images"))[: self.count]

    @property
    def best_row(self) -> Row | None:
        """The row with the lowest loss, of equal ones the first; None if no loss was finite."""
        finite = [row for row in self.rows if math.isfinite(row["loss"])]
        return min(finite, key=lambda row: row["loss"], default=None)

    @property
    def is_last_worse(self) -> bool:
        """Whether the last loss is above the lowest by more than chance: two standard errors of the images' pairs.

        One that is not finite is worse; a single image says nothing.
        """
        best = self.best_row
        if best is None or best is self.rows[-1]:
            return False
        last, lowest = (torch.tensor(losses, dtype=torch.float64) for losses in (self._last_losses, self._best_losses))
        more = last - lowest
        if not bool(more.isfinite().all()):
            return True
        return len(more) > 1 and bool(more.mean() > SURE * more.std() / math.sqrt(len(more)))

    def measure(self, diffusion: GaussianDiffusion, images: int, batch_size: int) -> Row | None:
        """Measure a process after that number of images of training, and keep its weights if it is the best so far.

        Args:
            diffusion: the process with the averaged weights, in eval mode.
            images: images seen so far.
            batch_size: images at a time, at most.

        Returns:
            The new row, or None if `count` is 0.
        """
        if self.count == 0:
            return None
        losses = self.losses(diffusion, batch_size)
        # Images are in the order of their timesteps.
        parts = {f"loss_quarter_{number + 1}": part for number, part in enumerate(losses.tensor_split(QUARTERS))}
        row = {"images": images, "loss": float(losses.mean())}
        row |= {name: float(part.mean()) if len(part) else math.nan for name, part in parts.items()}
        self.rows.append(row)
        self._last_losses = losses.tolist()
        if self.best_row is row:
            self._best_losses = self._last_losses
            weights = diffusion.model.state_dict()
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        return row

    @torch.inference_mode()
    def losses(self, diffusion: GaussianDiffusion, batch_size: int) -> Tensor:
        """Return the loss of each chosen image in float32, as float64 (count,).

        Timesteps are spread evenly, t_i = floor((i + 1/2) T / count), so that all noise levels count alike. Noise is
        not assigned to its nearest images, because that would depend on the batch size.
        """
        times = ((torch.arange(self.count) + 0.5) * diffusion.num_timesteps / self.count).long()
        found = []
        immiscible, diffusion.loss.immiscible = diffusion.loss.immiscible, False
        try:
            for start, chosen in zip(range(0, self.count, BLOCK), self._chosen.split(BLOCK), strict=True):
                random = StepRandomness.of(diffusion, len(chosen), self.seed, start)
                random = replace(random, times=times[start : start + BLOCK])
                for first in range(0, len(chosen), batch_size):
                    part = range(first, min(first + batch_size, len(chosen)))
                    images, labels = self.data.batch(chosen[first : part.stop])
                    found.append(_losses(diffusion, images, labels, random.part(part)))
        finally:
            diffusion.loss.immiscible = immiscible
        return torch.cat(found)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of it that a checkpoint keeps."""
        return {"best": self.best} if self.best else {}

    def state(self) -> dict[str, Any]:
        """Return the rest that a checkpoint keeps, as JSON values."""
        return {
            "count": self.count,
            "rows": self.rows,
            "best_losses": self._best_losses,
            "last_losses": self._last_losses,
        }

    def restore(self, state: Mapping[str, Any], best: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Take what a checkpoint kept, unless another budget has measured another number of images.

        Args:
            state: as of `state()`.
            best: as in `best`.
            weights: the weights of the network to compare with.

        Raises:
            ValueError: the weights are of another network, or something is missing.
        """
        if state["count"] != self.count:
            return
        self.rows = [
            {name: float(row[name]) for name in COLUMNS} | {"images": int(row["images"])} for row in state["rows"]
        ]
        self._best_losses = [float(loss) for loss in state["best_losses"]]
        self._last_losses = [float(loss) for loss in state["last_losses"]]
        kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in best.items()}
        expected = {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()} if self.best_row else {}
        if kinds != expected or not {len(self._best_losses), len(self._last_losses)} <= {self.count, 0}:
            raise ValueError("its best weights are not those of this network")
        self.best = dict(best)


def _losses(diffusion: GaussianDiffusion, images: Tensor, labels: Tensor | None, random: StepRandomness) -> Tensor:
    device = diffusion.device
    classes = None if diffusion.num_classes is None else diffusion.checked_classes(labels, len(images))
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
