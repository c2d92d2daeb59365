"""One training step: the gradient of a batch, in as many micro-batches as memory needs, and its report."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from diffusion_core.errors import is_out_of_memory
from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.runtime.allocator import return_freed_memory
from diffusion_core.runtime.device import to_device
from diffusion_core.runtime.distributed import Ranks
from diffusion_core.training.randomness import StepRandomness

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class OutOfMemory(RuntimeError):
    """The device's memory is too small for every possible number of micro-batches."""


class DoesNotFit(RuntimeError):
    """The gradient needs more memory than the device has; smaller micro-batches may fit."""


class Gradient:
    """Computes the gradient of this process's part of a batch.

    `inputs` does the work on the host. `compute` uses only tensors on the device, so that a CUDA graph can record it.

    Args:
        diffusion: the process to train.
        dtype: precision of the network's matrix products.
        accumulate: micro-batches per part.
        horizontal_flip: mirror the images selected by `StepRandomness.flipped`.
        ranks: the processes that share a batch; each gets the mean of their gradients.
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
        """Return the arguments of `compute`, on the device.

        Args:
            images: uint8 (B, C, H, W), on the device.
            labels: int64 (B,), on the host, or None.
            randomness: the random numbers of these images.

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
        """Return `run(*inputs)`; if memory is too small, retry with smaller micro-batches, then with recomputation.

        Raises:
            OutOfMemory: the activations of a single image do not fit, or several processes train.
        """
        while True:
            inputs = self.inputs(images, labels, randomness)
            try:
                return run(*inputs)
            except DoesNotFit as error:
                problem = str(error)
            # Outside the handler, because the error's traceback keeps tensors alive.
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
            unlabelled: which labels are replaced by the null class, bool (B,), or None.
            flipped: which images are mirrored, bool (B,), or None for none.
            *self_cond_mask: for each micro-batch, the indices within it of the self-conditioned images, or None.

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
                # Processes exchange gradients only at the last micro-batch.
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
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise DoesNotFit(" ".join(str(error).split())) from None
        return total

    def micro_batches(self, count: int) -> list[range]:
        """Return the range of image indices of each micro-batch, for `count` images."""
        size = count // self.accumulate
        return [range(start, start + size) for start in range(0, count, size)]

    def _loss(self, images: Tensor, **inputs: Tensor | None) -> Tensor:
        # Without autocast's cache: it would reuse weights cast without gradient for the self-conditioning estimate, and
        # the weights would get no gradient (PyTorch issue 158232).
        low = self.dtype != torch.float32
        with torch.autocast(images.device.type, self.dtype, enabled=low, cache_enabled=False):
            # The noise already includes offset noise.
            loss: Tensor = self.forward(images.float() / 255.0, offset_noise_strength=0.0, **inputs)
        return loss

    def _save_memory(self, images: int, problem: str) -> None:
        """Reduce the memory of the next attempt at a step.

        Raises:
            OutOfMemory: no reduction is left, or several processes train, which must all use the same micro-batches.
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
        else:
            return_freed_memory()


@dataclass(frozen=True)
class StepReport:
    """The result of one step. `loss`, `grad_norm` and `skipped` are scalars on the device; reading one waits for it.

    Attributes:
        step: steps done, including this one.
        images: images seen, including those of this step.
        batch_size: images of this step.
        loss: mean weighted loss of the batch.
        grad_norm: norm of the gradient before clipping.
        learning_rate: the learning rate of this step.
        skipped: 1 if the gradient was not finite, so that the weights did not change; else 0.
        began: start of the step, in seconds of `time.monotonic`.
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
        """Whether this step reached a multiple of `every_images` images."""
        return self.images // every_images > (self.images - self.batch_size) // every_images
