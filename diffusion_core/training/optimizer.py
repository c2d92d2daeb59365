"""What a step does with its gradients, without the host waiting for the device: all it needs is in tensors."""

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.training.ema import EMA


class Update:
    """Clipping, AdamW and the average of the weights; a gradient that is not finite changes none of them.

    Whether it is finite is decided on the device: the fused AdamW takes the scale of the gradients and whether to skip
    as tensors, and steps in a row that were skipped are counted in one.

    Args:
        module: whose parameters are trained.
        ema: their average.
        learning_rate, betas, weight_decay: of AdamW.
        max_grad_norm: gradients longer than this are scaled down to it.

    Attributes:
        bad_steps: skipped steps in a row so far, a scalar on the device.
        most_bad_steps: the most that there ever were, likewise.
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
            # So that a CUDA graph may hold its steps; alone, it changes nothing of a fused one.
            capturable=device.type == "cuda",
        )
        # It would warn of each step that is not recorded, as the first is.
        self.optimizer._warned_capturable_if_run_uncaptured = True
        self.bad_steps = torch.zeros((), device=device)
        self.most_bad_steps = self.bad_steps.clone()

    def step(self, learning_rate: Tensor, ema_share: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the gradients, which stay until the next ones take their place.

        Args:
            learning_rate: of this step, a scalar on the device.
            ema_share: by which the average moves towards the weights, likewise.

        Returns:
            The norm of the gradient before clipping, and 1 where the step was skipped, else 0: scalars on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = get_total_norm([each.grad for each in self.parameters if each.grad is not None])
        skipped = (~torch.isfinite(norm)).float()
        self._apply((norm / self.max_grad_norm).clamp(min=1.0), skipped)
        self.ema.approach(self.module, ema_share * (1.0 - skipped))
        # In place, so that a recorded step counts on.
        self.bad_steps.add_(1.0).mul_(skipped)
        self.most_bad_steps.copy_(torch.maximum(self.most_bad_steps, self.bad_steps))
        return norm, skipped

    def _apply(self, divisor: Tensor, skipped: Tensor) -> None:
        """Let AdamW take a step with the gradients over `divisor`, unless `skipped` is 1."""
        if divisor.device.type in ("cpu", "cuda"):
            # So torch's GradScaler speaks to the fused kernels.
            self.optimizer.grad_scale = divisor  # type: ignore[attr-defined]
            self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
            self.optimizer.step()
        elif not bool(skipped):
            # Apple's kernel takes no notice of the two; so here the host waits.
            torch._foreach_div_([each.grad for each in self.parameters if each.grad is not None], divisor)
            self.optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's tensors by parameter and name."""
        return {
            f"{index}.{name}": value
            for index, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }

    def counts(self) -> dict[str, Tensor]:
        """Return how many steps in a row were skipped, now and at most."""
        return {"bad_steps": self.bad_steps.long(), "most_bad_steps": self.most_bad_steps.long()}

    def restore(self, tensors: dict[str, Tensor], counts: dict[str, Tensor]) -> None:
        """Go on with what `tensors` and `counts` gave."""
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            index, name = key.split(".", 1)
            # Laid out in memory as the parameter is, which is what the fused AdamW takes for granted.
            parameter = self.parameters[int(index)]
            if value.ndim:
                value = torch.empty_like(parameter.detach()).copy_(value.reshape(parameter.shape))
            state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.bad_steps = counts["bad_steps"].to(self.bad_steps)
        self.most_bad_steps = counts["most_bad_steps"].to(self.most_bad_steps)
