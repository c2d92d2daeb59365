"""The gradient of a batch, in as many parts as memory asks for."""

import logging
from contextlib import nullcontext

import torch
from torch import Tensor

from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.process.transfer import moved
from diffusion_core.randomness import derive_seed
from diffusion_core.training.distributed import Ranks
from diffusion_core.training.draws import TrainingDraws

logger = logging.getLogger(__name__)


class OutOfMemory(RuntimeError):
    """The device's memory is too small, however the batch is cut."""


class Gradient:
    """Adds the gradient of a process's part of a batch to the parameters.

    Args:
        diffusion: what is trained.
        dtype: of the network's products.
        accumulate: micro-batches that the part is cut into.
        horizontal_flip: mirror the images that the draws say.
        ranks: the processes that share a batch; each ends with the mean of their gradients.
    """

    def __init__(
        self, diffusion: GaussianDiffusion, dtype: torch.dtype, accumulate: int, horizontal_flip: bool, ranks: Ranks
    ) -> None:
        self.diffusion = diffusion
        self.dtype = dtype
        self.accumulate = accumulate
        self.horizontal_flip = horizontal_flip
        self.ranks = ranks
        self.forward = ranks.wrapped(diffusion)

    def add(self, images: Tensor, labels: Tensor | None, draws: TrainingDraws, seed: int) -> Tensor:
        """Add the gradient of the mean loss of the images; return that loss.

        Args:
            images: uint8 (B, C, H, W), on the device.
            labels: int64 (B,), on the host, or None.
            draws: of these images.
            seed: of the network's dropout.

        Raises:
            OutOfMemory: the device cannot hold a single image's activations, or several processes train.
        """
        while True:
            try:
                return self._accumulated(images, labels, draws, seed)
            except torch.OutOfMemoryError as error:
                trouble = str(error)
            # Only now, when the error no longer holds the tensors of the frames it passed.
            self.diffusion.zero_grad(set_to_none=True)
            self._save_memory(len(images), trouble)

    def _accumulated(self, images: Tensor, labels: Tensor | None, draws: TrainingDraws, seed: int) -> Tensor:
        """Add up the gradients of micro-batches; return their mean loss."""
        total = torch.zeros((), device=self.diffusion.device)
        size = len(images) // self.accumulate
        for start in range(0, len(images), size):
            micro = range(start, start + size)
            last = micro.stop == len(images)
            # Processes exchange their gradients once a step.
            quiet = nullcontext() if last or self.ranks.count == 1 else self.forward.no_sync()  # type: ignore[operator]
            with quiet:
                some = None if labels is None else labels[micro.start : micro.stop]
                loss = self._loss(images[micro.start : micro.stop], some, draws.part(micro), seed) / self.accumulate
                loss.backward()
            total += loss.detach()
        return total

    def _loss(self, images: Tensor, labels: Tensor | None, draws: TrainingDraws, seed: int) -> Tensor:
        device = self.diffusion.device
        if self.horizontal_flip:
            flipped = moved(draws.flipped, device)[:, None, None, None]
            images = torch.where(flipped, images.flip(-1), images)
        pixels = images.float() / 255.0
        torch.manual_seed(derive_seed(seed, draws.start))
        # Without a cache of casts: those that the first guess makes, without gradient, would serve the second pass, and
        # the weights would learn nothing (PyTorch issue 158232).
        low = self.dtype != torch.float32
        with torch.autocast(device.type, self.dtype, enabled=low, cache_enabled=False):
            loss: Tensor = self.forward(
                pixels,
                times=moved(draws.times, device),
                noise=draws.noise,
                offset_noise_strength=0.0,  # the noise has it
                # Still on the host, where the process can look at them without waiting for the device.
                classes=None if self.diffusion.num_classes is None else labels,
                guessed=draws.guessed,
                unlabelled=draws.unlabelled,
            )
        return loss

    def _save_memory(self, images: int, trouble: str) -> None:
        """Let the next attempt at a step need less memory.

        Raises:
            OutOfMemory: it cannot, or the processes would no longer be in step.
        """
        network = self.diffusion.model
        if self.ranks.count == 1 and self.accumulate < images:
            self.accumulate = next(n for n in range(self.accumulate + 1, images + 1) if images % n == 0)
            remedy = f"batches are now cut into {self.accumulate} parts"
        elif self.ranks.count == 1 and getattr(network, "recompute", None) is False:
            network.recompute = True  # type: ignore[assignment]
            remedy = "activations are now computed again in the backward pass"
        else:
            raise OutOfMemory(
                f"the device's memory is too small for {images // self.accumulate} images at a time ({trouble}): take"
                " smaller images or a smaller network, or raise train.accumulate where several processes train"
            )
        logger.warning("a step did not fit into the device's memory; %s", remedy)
        if self.diffusion.device.type == "cuda":
            torch.cuda.empty_cache()
