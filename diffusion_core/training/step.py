"""One training step: the gradient of a batch, in as many parts as memory asks for, and what the step reports."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.runtime.device import to_device
from diffusion_core.runtime.distributed import Ranks
from diffusion_core.training.randomness import StepRandomness

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class OutOfMemory(RuntimeError):
    """The device's memory is too small, however the batch is cut."""


class DoesNotFit(RuntimeError):
    """The gradient needs more memory than the device has; a smaller part at a time may do."""


class Gradient:
    """Gives the parameters the gradient of a process's part of a batch.

    `inputs` looks at what must be known on the host; `compute` is a function of tensors on the device alone, so that a
    CUDA graph can hold it.

    Args:
        diffusion: what is trained.
        dtype: of the network's products.
        accumulate: micro-batches that the part is cut into.
        horizontal_flip: mirror the images that the randomness say.
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
        self.parameters = list(diffusion.parameters())
        self.forward = ranks.ddp(diffusion)

    def inputs(self, images: Tensor, labels: Tensor | None, randomness: StepRandomness) -> tuple[Tensor | None, ...]:
        """Return what `compute` takes, on the device.

        Args:
            images: uint8 (B, C, H, W), on the device.
            labels: int64 (B,), on the host, or None.
            randomness: of these images.

        Raises:
            ValueError: a label is out of range.
        """
        device = self.diffusion.device
        classes = None if self.diffusion.num_classes is None else self.diffusion.checked_classes(labels, len(images))
        return (
            images,
            classes,
            to_device(randomness.times, device),
            randomness.noise,
            None if classes is None else to_device(randomness.unlabelled, device),
            to_device(randomness.flipped, device) if self.horizontal_flip else None,
            *(
                to_device(randomness.part(micro).self_cond_mask.nonzero().squeeze(1), device)
                if self.diffusion.self_condition
                else None
                for micro in self.micro_batches(len(images))
            ),
        )

    def attempt(
        self,
        run: Callable[..., Result],
        images: Tensor,
        labels: Tensor | None,
        randomness: StepRandomness,
    ) -> Result:
        """Return what `run` makes of the inputs, which are cut into ever smaller parts until they fit.

        Raises:
            OutOfMemory: the device cannot hold a single image's activations, or several processes train.
        """
        while True:
            inputs = self.inputs(images, labels, randomness)
            try:
                return run(*inputs)
            except DoesNotFit as error:
                problem = str(error)
            # Only now, when the error no longer holds the tensors of the frames it passed.
            self._save_memory(len(images), problem)

    def compute(
        self,
        images: Tensor,
        classes: Tensor | None,
        times: Tensor,
        noise: Tensor,
        unlabelled: Tensor | None,
        flipped: Tensor | None,
        *self_cond_mask: Tensor | None,
    ) -> Tensor:
        """Set the parameters' gradients to those of the mean loss of the images; return that loss.

        Args:
            images: uint8 (B, C, H, W).
            classes: int64 (B,), or None.
            times: int64 (B,).
            noise: (B, C, H, W).
            unlabelled: which labels are dropped, bool (B,).
            flipped: which images are mirrored, bool (B,).
            self_cond_mask: for each micro-batch, the indices within it of the images that are self-conditioned.

        Raises:
            DoesNotFit: the device's memory is too small.
        """
        for parameter in self.parameters:
            parameter.grad = None
        if flipped is not None:
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        total = torch.zeros((), device=self.diffusion.device)
        try:
            for micro, chosen in zip(self.micro_batches(len(images)), self_cond_mask, strict=True):
                part = slice(micro.start, micro.stop)
                # Processes exchange their gradients once a step.
                alone = self.ranks.count == 1 or micro.stop == len(images)
                with nullcontext() if alone else self.forward.no_sync():  # type: ignore[operator]
                    loss = self._loss(
                        images[part],
                        times=times[part],
                        noise=noise[part],
                        classes=None if classes is None else classes[part],
                        unlabelled=None if unlabelled is None else unlabelled[part],
                        self_cond_mask=chosen,
                    )
                    loss = loss / self.accumulate
                    loss.backward()
                total += loss.detach()
        except torch.OutOfMemoryError as error:
            raise DoesNotFit(str(error)) from None
        return total

    def micro_batches(self, count: int) -> list[range]:
        """Return which of `count` images each micro-batch has."""
        size = count // self.accumulate
        return [range(start, start + size) for start in range(0, count, size)]

    def _loss(self, images: Tensor, **inputs: Tensor | None) -> Tensor:
        # Without a cache of casts: those of the self-conditioning estimate, made without gradient, would serve the
        # second pass too, and the weights would learn nothing (PyTorch issue 158232).
        low = self.dtype != torch.float32
        with torch.autocast(images.device.type, self.dtype, enabled=low, cache_enabled=False):
            # The noise has its offset already.
            loss: Tensor = self.forward(images.float() / 255.0, offset_noise_strength=0.0, **inputs)
        return loss

    def _save_memory(self, images: int, problem: str) -> None:
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
                f"the device's memory is too small for {images // self.accumulate} images at a time ({problem}): take"
                " smaller images or a smaller network, or raise train.accumulate where several processes train"
            )
        logger.warning("a step did not fit into the device's memory; %s", remedy)
        self.diffusion.zero_grad(set_to_none=True)
        if self.diffusion.device.type == "cuda":
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        step: steps done, this one included.
        images: images seen, this step's included.
        batch_size: images of this step.
        loss: mean weighted loss of the batch, a scalar tensor on the device; reading it waits for the device.
        grad_norm: norm of the gradient before clipping, likewise.
        learning_rate: of this step.
        skipped: 1 where the gradient was not finite and the weights are as before, else 0; likewise.
        began: when it began, by `time.monotonic`.
    """

    step: int
    images: int
    batch_size: int
    loss: Tensor
    grad_norm: Tensor
    learning_rate: float
    skipped: Tensor
    began: float

    def reaches(self, every_images: int) -> bool:
        """Whether the images seen reached a multiple of `every_images` with this step."""
        return self.images // every_images > (self.images - self.batch_size) // every_images
