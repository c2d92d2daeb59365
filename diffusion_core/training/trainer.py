"""The training loop, a generator of step reports: whoever iterates decides when to log, save and stop."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.randomness import derive_seed, generator
from diffusion_core.training.data import TrainingData
from diffusion_core.training.ema import EMA
from diffusion_core.training.order import batch_indices
from diffusion_core.training.precision import autocast_dtype

# Steps in a row whose gradient is not finite, after which training has diverged.
MAX_BAD_STEPS = 10


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
        skipped: the gradient was not finite and the weights are as before.
        seconds: how long it took.
    """

    step: int
    images: int
    batch_size: int
    loss: Tensor
    grad_norm: Tensor
    learning_rate: float
    skipped: bool
    seconds: float

    def reaches(self, every_images: int) -> bool:
        """Whether the images seen reached a multiple of `every_images` with this step."""
        return self.images // every_images > (self.images - self.batch_size) // every_images


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class Trainer:
    """Trains a diffusion process; every draw is a function of (seed, step), so a resumed run equals an unbroken one.

    It seeds torch's global generator at every step, because dropout layers draw from nothing else.

    Args:
        diffusion: on the device where it is to be trained.
        data: the images, uint8.
        images: training budget, in images; rounded up to whole batches.
        batch_size: images a step.
        accumulate: micro-batches that a step's batch is cut into to save memory; divides `batch_size`.
        seed: of the data order and all noise.
        learning_rate: of AdamW, reached after `warmup_images`.
        betas: of AdamW.
        weight_decay: of AdamW.
        warmup_images: the learning rate rises evenly over so many images.
        max_grad_norm: gradients longer than this are scaled down to it.
        ema_halflife_images: see `EMA`.
        horizontal_flip: mirror every other image, at random.
        precision: "auto", "float32" or "bfloat16"; see `autocast_dtype`.

    Raises:
        ValueError: a number is below 1, `accumulate` does not divide `batch_size`, or there is no data.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        data: TrainingData,
        *,
        images: int,
        batch_size: int = 64,
        accumulate: int = 1,
        seed: int = 0,
        learning_rate: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        warmup_images: int = 0,
        max_grad_norm: float = 1.0,
        ema_halflife_images: float = 50_000,
        horizontal_flip: bool = False,
        precision: str = "auto",
    ) -> None:
        for name, value in (("images", images), ("batch_size", batch_size), ("accumulate", accumulate)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if batch_size % accumulate:
            raise ValueError(f"accumulate is {accumulate}; it must divide batch_size, which is {batch_size}")
        if len(data) == 0:
            raise ValueError("data is empty; it must have at least one image")
        self.diffusion = diffusion
        self.data = data
        self.total_steps = math.ceil(images / batch_size)
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.seed = seed
        self.learning_rate = learning_rate
        self.warmup_images = warmup_images
        self.max_grad_norm = max_grad_norm
        self.horizontal_flip = horizontal_flip
        self.dtype = autocast_dtype(precision, diffusion.device)
        self.ema = EMA(diffusion, ema_halflife_images)
        self.optimizer = torch.optim.AdamW(
            diffusion.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True
        )
        self.step = 0
        self._bad_steps = 0

    @property
    def images(self) -> int:
        """Images seen so far."""
        return self.step * self.batch_size

    def steps(self) -> Iterator[StepReport]:
        """Train until the budget is spent, yielding after each step.

        Raises:
            TrainingDiverged: the gradient was not finite for 10 steps in a row.
        """
        self.diffusion.train()
        while self.step < self.total_steps:
            yield self._train_step()

    def _train_step(self) -> StepReport:
        began = time.perf_counter()
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._backward()
        grad_norm = nn.utils.clip_grad_norm_(self.diffusion.parameters(), self.max_grad_norm)
        finite = bool(torch.isfinite(grad_norm))
        self._bad_steps = 0 if finite else self._bad_steps + 1
        self.step += 1
        if finite:
            self.optimizer.step()
            self.ema.update(self.diffusion, self.images, self.batch_size)
        self.optimizer.zero_grad(set_to_none=True)
        if self._bad_steps == MAX_BAD_STEPS:
            raise TrainingDiverged(
                f"the gradient was not finite for {MAX_BAD_STEPS} steps in a row, the last of them step {self.step}:"
                " lower train.learning_rate, or set DIFFUSION_PRECISION=float32"
            )
        seconds = time.perf_counter() - began
        return StepReport(self.step, self.images, self.batch_size, loss, grad_norm, rate, not finite, seconds)

    def _backward(self) -> Tensor:
        """Add up the gradients of the step's micro-batches; return their mean loss."""
        device = self.diffusion.device
        total = torch.zeros((), device=device)
        indices = batch_indices(self.seed, self.step, self.batch_size, len(self.data))
        for micro, part in enumerate(indices.chunk(self.accumulate)):
            images, labels = self.data.batch(part)
            if self.horizontal_flip:
                draws = torch.rand(len(part), generator=generator(self.seed, self.step, micro, "flip"))
                images = torch.where((draws < 0.5)[:, None, None, None], images.flip(-1), images)
            pixels = images.to(device, non_blocking=True).float() / 255.0
            # Still on the host, where the process can look at them without waiting for the device.
            classes = None if self.diffusion.num_classes is None else labels
            torch.manual_seed(derive_seed(self.seed, self.step, micro, "network"))
            draws_of_process = generator(self.seed, self.step, micro, "process", device=device)
            # Without a cache of casts: those that the first guess makes, without gradient, would serve the second
            # pass, and the weights would learn nothing (PyTorch issue 158232).
            enabled = self.dtype != torch.float32
            with torch.autocast(device.type, self.dtype, enabled=enabled, cache_enabled=False):
                loss = self.diffusion(pixels, classes=classes, generator=draws_of_process) / self.accumulate
            loss.backward()
            total += loss.detach()
        return total

    def _rate(self) -> float:
        if self.warmup_images == 0:
            return self.learning_rate
        return self.learning_rate * min(1.0, (self.images + self.batch_size) / self.warmup_images)

    # --- state

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return what a checkpoint must hold: the tensors of model, EMA and optimizer."""
        optimizer = {
            f"{index}.{name}": value
            for index, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        return {
            "model": dict(self.diffusion.model.state_dict()),
            "ema": dict(self.ema.module.model.state_dict()),
            "optimizer": optimizer,
            "trainer": {"bad_steps": torch.tensor(self._bad_steps)},
        }

    def restore(self, step: int, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Go on after `step` steps from the tensors of a checkpoint.

        Raises:
            RuntimeError: they are of another network; the message lists the differences.
        """
        self.diffusion.model.load_state_dict(tensors["model"])
        self.ema.module.model.load_state_dict(tensors["ema"])
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors["optimizer"].items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
        self.step = step
        self._bad_steps = int(tensors["trainer"]["bad_steps"])
