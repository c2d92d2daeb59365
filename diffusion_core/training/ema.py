"""The exponential moving average of the weights, with which samples are drawn."""

from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from diffusion_core.runtime.device import to_device

Module = TypeVar("Module", bound=nn.Module)


class EMA(Generic[Module]):
    """Averages a module's parameters over the images that it has seen (Karras et al. 2022, section F.2).

    Args:
        module: whose parameters are averaged; copied.
        halflife_images: after so many images a weight's share has halved; greater than 0.
        rampup_ratio: the half-life is at most this share of the images seen, so that the start is soon forgotten.
    """

    def __init__(self, module: Module, halflife_images: float, rampup_ratio: float = 0.05) -> None:
        if halflife_images <= 0:
            raise ValueError(f"halflife_images is {halflife_images}; it must be greater than 0")
        self.module = deepcopy(module).eval().requires_grad_(False)
        self.halflife_images = halflife_images
        self.rampup_ratio = rampup_ratio

    def decay(self, images: int, batch_size: int) -> float:
        """Return the share of the old average that a step of `batch_size` images keeps, after `images` images."""
        halflife = min(self.halflife_images, images * self.rampup_ratio)
        return float(0.5 ** (batch_size / halflife)) if halflife > 0 else 0.0

    @torch.no_grad()
    def update(self, module: nn.Module, images: int, batch_size: int, skipped: Tensor | None = None) -> None:
        """Take in the parameters of `module` after a step.

        Args:
            module: like the one that was copied.
            images: seen, with this step's.
            batch_size: images of this step.
            skipped: 1 where the step was none and the average is to stay, else 0: a scalar on the device, for which
                the host does not wait.
        """
        share = to_device(torch.tensor(1.0 - self.decay(images, batch_size)), next(self.module.parameters()).device)
        self.approach(module, share if skipped is None else share * (1.0 - skipped))

    @torch.no_grad()
    def approach(self, module: nn.Module, share: Tensor) -> None:
        """Move the average towards the parameters of `module` by `share`, in [0, 1], a scalar on the device."""
        averages: list[Tensor] = [*self.module.parameters()]
        weights: list[Tensor] = [*module.parameters()]
        if share.device.type == "cpu":
            torch._foreach_lerp_(averages, weights, [share] * len(averages))
        else:
            # In three kernels; with a share on the device, the one above would be one kernel a parameter.
            differences = torch._foreach_sub(weights, averages)
            torch._foreach_mul_(differences, share)
            torch._foreach_add_(averages, differences)
        if buffers := list(module.buffers()):
            torch._foreach_copy_(list(self.module.buffers()), buffers)
