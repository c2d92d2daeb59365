"""The exponential moving average (EMA) of the weights, used for sampling."""

from copy import deepcopy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from diffusion_core.runtime.device import to_device

Module = TypeVar("Module", bound=nn.Module)


class EMA(Generic[Module]):
    """The EMA of a module's parameters, with a half-life in images (Karras et al. 2022, section F.2).

    Args:
        module: the module; copied.
        halflife_images: images after which a weight's share in the average has halved; greater than 0.
        rampup_ratio: limits the half-life to this fraction of the images seen, so that early weights decay quickly;
            None for no limit, where the first weights are trained ones.

    Attributes:
        module: the copy, with the averaged parameters.

    Raises:
        ValueError: `halflife_images` is not above 0.
    """

    def __init__(self, module: Module, halflife_images: float, rampup_ratio: float | None = 0.05) -> None:
        if halflife_images <= 0:
            raise ValueError(f"halflife_images is {halflife_images}; it must be greater than 0")
        self.module = deepcopy(module).eval().requires_grad_(False)
        self.halflife_images = halflife_images
        self.rampup_ratio = rampup_ratio

    def decay(self, images: int, batch_size: int) -> float:
        """Return the share of the old average that remains after a step of `batch_size` images.

        Args:
            images: images seen, including those of this step.
            batch_size: images of this step.
        """
        halflife = self.halflife_images
        if self.rampup_ratio is not None:
            halflife = min(halflife, images * self.rampup_ratio)
        return float(0.5 ** (batch_size / halflife)) if halflife > 0 else 0.0

    @torch.no_grad()
    def update(self, module: nn.Module, images: int, batch_size: int, skipped: Tensor | None = None) -> None:
        """Update the average with the parameters of `module` after a step, without host-device synchronisation.

        Args:
            module: a module like the one that was copied.
            images: images seen, including those of this step.
            batch_size: images of this step.
            skipped: scalar on the device: 1 if the step was skipped, so that the average does not change; else 0.
        """
        share = to_device(torch.tensor(1.0 - self.decay(images, batch_size)), next(self.module.parameters()).device)
        self.approach(module, share if skipped is None else share * (1.0 - skipped))

    @torch.no_grad()
    def approach(self, module: nn.Module, share: Tensor) -> None:
        """Interpolate the average towards the parameters of `module` by `share`, in [0, 1], a scalar on the device."""
        averages: list[Tensor] = [*self.module.parameters()]
        weights: list[Tensor] = [*module.parameters()]
        if share.device.type == "cpu":
            torch._foreach_lerp_(averages, weights, [share] * len(averages))
        else:
            # Three kernels; the call above with a share on the device would launch one kernel per parameter.
            differences = torch._foreach_sub(weights, averages)
            torch._foreach_mul_(differences, share)
            torch._foreach_add_(averages, differences)
        if buffers := list(module.buffers()):
            torch._foreach_copy_(list(self.module.buffers()), buffers)
