"""What the trainer yields after each step."""

from dataclasses import dataclass

from torch import Tensor


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
