"""The optimizer step and the EMA update, without host-device synchronisation."""

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.training.ema import EMA

COUNTS = ("bad_steps", "most_bad_steps", "skipped_steps")


class Update:
    """Gradient clipping, AdamW and EMA.

    A step whose loss or gradient is not finite is skipped: it changes neither the weights nor their EMA.

    The device decides whether to skip a step: the fused AdamW takes the gradient scale and the skip flag as tensors.

    Args:
        module: the process to train.
        ema: the EMA of its parameters.
        learning_rate: of AdamW.
        betas: of AdamW.
        weight_decay: of AdamW.
        max_grad_norm: gradients with a greater norm are scaled to it.

    Attributes:
        optimizer: the AdamW.
        bad_steps: consecutive skipped steps up to now, a scalar on the device.
        most_bad_steps: maximum of `bad_steps` so far, a scalar on the device.
        skipped_steps: all skipped steps so far, a scalar on the device.
    """

    def __init__(
        self,
        module: GaussianDiffusion,
        ema: EMA[GaussianDiffusion],
        *,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
        max_grad_norm: float,
    ) -> None:
        self.module = module
        self.ema = ema
        self.max_grad_norm = max_grad_norm
        self.parameters = list(module.parameters())
        device = self.parameters[0].device
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=learning_rate,
            betas=betas,
            weight_decay=weight_decay,
            fused=True,
            # Required to record a step in a CUDA graph.
            capturable=device.type == "cuda",
        )
        # Suppresses the warning about a capturable optimizer that runs outside a CUDA graph, as the first step does.
        self.optimizer._warned_capturable_if_run_uncaptured = True
        self.bad_steps = torch.zeros((), device=device)
        self.most_bad_steps = self.bad_steps.clone()
        self.skipped_steps = self.bad_steps.clone()

    def step(self, learning_rate: Tensor, ema_share: Tensor, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the gradients, without resetting them.

        Args:
            learning_rate: the learning rate of this step, a scalar on the device.
            ema_share: share by which the EMA moves towards the weights, a scalar on the device.
            loss: the loss of which the gradients are, a scalar on the device.

        Returns:
            The norm of the gradient before clipping, and 1 if the step was skipped, else 0; both scalars on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = get_total_norm([each.grad for each in self.parameters if each.grad is not None])
        skipped = (~torch.isfinite(norm + loss)).float()
        self._apply((norm / self.max_grad_norm).clamp(min=1.0), skipped)
        self.ema.approach(self.module, ema_share * (1.0 - skipped))
        # In place, so that a replayed CUDA graph updates the same tensors.
        self.bad_steps.add_(1.0).mul_(skipped)
        self.most_bad_steps.copy_(torch.maximum(self.most_bad_steps, self.bad_steps))
        self.skipped_steps.add_(skipped)
        return norm, skipped

    def _apply(self, divisor: Tensor, skipped: Tensor) -> None:
        """Take an AdamW step with the gradients divided by `divisor`, unless `skipped` is 1."""
        if divisor.device.type in ("cpu", "cuda"):
            # The interface between torch's GradScaler and the fused kernels.
            self.optimizer.grad_scale = divisor  # type: ignore[attr-defined]
            self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not bool(skipped):
            # Apple's kernel ignores both tensors, so the host reads `skipped`.
            torch._foreach_div_([each.grad for each in self.parameters if each.grad is not None], divisor)
            self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's tensors, with keys "<index of the parameter>.<name>"."""
        return {
            f"{index}.{name}": value
            for index, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }

    def counts(self) -> dict[str, Tensor]:
        """Return `bad_steps`, `most_bad_steps` and `skipped_steps`, int64."""
        return {name: getattr(self, name).long() for name in COUNTS}

    def restore(self, tensors: dict[str, Tensor], counts: dict[str, Tensor]) -> None:
        """Restore the results of `tensors()` and `counts()`."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            # The fused AdamW assumes the memory layout of the parameter.
            parameter = self.parameters[int(index)]
            if value.ndim:
                value = torch.empty_like(parameter.detach()).copy_(value.reshape(parameter.shape))
            state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        for name in COUNTS:
            setattr(self, name, counts[name].to(self.bad_steps))
