"""The training loop, a generator of step reports. The caller decides when to log, save and stop."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext

import torch
from torch import Tensor

from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.randomness import derive_seed
from diffusion_core.runtime.device import to_device
from diffusion_core.runtime.distributed import Ranks
from diffusion_core.runtime.precision import Precision, choose_precision
from diffusion_core.runtime.recording import Replayed
from diffusion_core.runtime.threads import ThreadChoice
from diffusion_core.self_check.comparison import Verdict
from diffusion_core.training.data import Batch, TrainingData, batches, resident
from diffusion_core.training.divergence import MAX_BAD_STEPS, check_steps
from diffusion_core.training.ema import EMA
from diffusion_core.training.optimizer import Update
from diffusion_core.training.order import Order
from diffusion_core.training.randomness import StepRandomness
from diffusion_core.training.step import Gradient, StepReport
from diffusion_core.training.ways import Ways


class Trainer:
    """Trains a diffusion process.

    All randomness is a function of (seed, step), so a resumed run equals an uninterrupted one. Random numbers are
    sampled for the global batch and split with it, so micro-batches and the number of processes change the result only
    by rounding. Exceptions are dropout and immiscible noise, which depend on the part.

    Each step seeds PyTorch's global generator, the only source of dropout masks. On a CPU, call `keep_freed_memory`
    first; it saves a seventh of the time of a step.

    Args:
        diffusion: the process, on the device to train on.
        data: the images, uint8.
        images: training budget in images; rounded up to whole batches.
        batch_size: images per step, over all processes.
        accumulate: micro-batches per process and step, to save memory. If memory is still too small, one process uses
            smaller micro-batches, then recomputes activations in the backward pass; several processes raise an error.
        seed: seed of the data order and all noise.
        learning_rate: of AdamW, reached after `warmup_images`.
        betas: of AdamW.
        weight_decay: of AdamW.
        warmup_images: the learning rate rises linearly over this many images.
        max_grad_norm: gradients with a greater norm are scaled to it.
        ema_halflife_images: see `EMA`.
        ema_rampup_ratio: see `EMA`.
        horizontal_flip: mirror each image with probability 1/2.
        shuffle_window: images are in random order within as many, see `Order`; None: within the whole epoch.
        max_skipped_share: share of the steps that may be skipped because their loss or gradient is not finite, in
            [0, 1]. It is one of the steps so far, and before step 1000 of the first 1000, or of all if these are fewer.
        precision: "auto", "float32" or "bfloat16"; see `choose_precision`.
        compiled: compile the network with torch.compile; on one CUDA GPU with one process, also record a step as a CUDA
            graph. If either is impossible, training runs without it after a warning.
        threads: chooses the number of threads of a step on a CPU with one process; unchanged if None.
        ranks: the processes that share each batch.

    Attributes:
        ema: the EMA of the weights.
        step: steps done.

    Raises:
        ValueError: a number is below 1, `batch_size` is not a multiple of micro-batches times processes, there is no
            data, or the device lacks the precision.
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
        ema_rampup_ratio: float | None = 0.05,
        horizontal_flip: bool = False,
        shuffle_window: int | None = None,
        max_skipped_share: float = 0.05,
        precision: str = "auto",
        compiled: bool = False,
        threads: ThreadChoice | None = None,
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    ) -> None:
        numbers = {
            "images": images,
            "batch_size": batch_size,
            "accumulate": accumulate,
            "shuffle_window": shuffle_window,
        }
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if batch_size % (accumulate * ranks.count):
            raise ValueError(
                f"batch_size is {batch_size}; it must be a multiple of accumulate, which is {accumulate}"
                + (f", times the number of processes, which is {ranks.count}" if ranks.count > 1 else "")
            )
        if len(data) == 0:
            raise ValueError("data is empty; it must have at least one image")
        self.diffusion = diffusion
        self.data = resident(data, diffusion.device)
        self.total_steps = math.ceil(images / batch_size)
        self.batch_size = batch_size
        self.order = Order(seed, len(data), shuffle_window)
        self.seed = seed
        self.learning_rate = learning_rate
        self.warmup_images = warmup_images
        self.max_skipped_share = max_skipped_share
        self.threads = threads
        self.ranks = ranks
        self.ema = EMA(diffusion, ema_halflife_images, ema_rampup_ratio)
        self.update = Update(
            diffusion,
            self.ema,
            learning_rate=learning_rate,
            betas=betas,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
        )
        self.step = 0
        chosen = choose_precision(precision, diffusion.device)
        self.gradient = Gradient(diffusion, chosen.dtype, accumulate, horizontal_flip, ranks)
        self.ways = Ways(self.gradient, chosen, compiled)
        self._run: Callable[..., tuple[Tensor, Tensor, Tensor]] = self._computed_step

    @property
    def precision(self) -> Precision:
        """Precision of the network's matrix products."""
        return self.ways.precision

    @property
    def verdicts(self) -> list[Verdict]:
        """Results of the self-check before the first step, one per way of running it (eager, compiled, replayed).

        Empty before that step, and if steps are eager and in float32.
        """
        return self.ways.verdicts

    @property
    def images(self) -> int:
        """Images seen so far."""
        return self.step * self.batch_size

    def steps(self) -> Iterator[StepReport]:
        """Train until the budget is used up, and yield a report after each step.

        Raises:
            TrainingDiverged: 10 consecutive steps were skipped, or more than `max_skipped_share`.
            OutOfMemory: the device's memory is too small; see `accumulate`.
        """
        self.diffusion.train()
        share = self.ranks.share(self.batch_size)

        def indices(step: int) -> Tensor:
            return self.batch(step + 1)[share.start : share.stop]

        remaining = range(self.step, self.total_steps)

        def ahead(step: int) -> Tensor:
            return self.order.ahead(step, self.batch_size, is_first=step == remaining.start)

        with ExitStack() as ending:
            if self.threads is not None:
                ending.callback(self.threads.close)
            yield from self._steps(batches(self.data, indices, remaining, self.diffusion.device, ahead))

    def _steps(self, given: Iterator[Batch]) -> Iterator[StepReport]:
        for number, (images, labels) in enumerate(given):
            if self.ways.unchecked:
                self.ways.check(images, labels, self._randomness())
            if number == 0:
                # Record again in each call: `restore` replaces tensors that an earlier CUDA graph uses.
                self.forget_recording()
            with nullcontext() if self.threads is None else self.threads.timed():
                report = self._train_step(images, labels)
            yield report

    def forget_recording(self) -> None:
        """Free the GPU memory of the recorded step and of the gradients; the next steps are recorded again."""
        self.diffusion.zero_grad(set_to_none=True)
        self._run = Replayed(self._computed_step, "a step") if self.ways.replayed else self._computed_step

    def _train_step(self, images: Tensor, labels: Tensor | None) -> StepReport:
        began = time.monotonic()
        rate = self._rate()
        share = 1.0 - self.ema.decay(self.images + self.batch_size, self.batch_size)
        scalars = to_device(torch.tensor([rate, share]), self.diffusion.device).unbind()
        randomness = self._randomness()

        def run(*inputs: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            # For dropout masks.
            torch.manual_seed(derive_seed(self.seed, self.step, "network", randomness.start))
            # Recomputing activations restores the generator's state on the host, which a CUDA graph cannot record.
            recomputes = getattr(self.diffusion.model, "recompute", False)
            return (self._computed_step if recomputes else self._run)(*scalars, *inputs)

        cut = self._cut()
        loss, grad_norm, skipped = self.gradient.attempt(run, images, labels, randomness)
        if self._cut() != cut:
            # Memory was too small: the next steps have other shapes, so check and record them again.
            self.ways.changed_shapes()
            self.forget_recording()
        self.step += 1
        self._stop_if_diverged()
        # Copies, because replaying the next step overwrites the outputs.
        copies = (loss.clone(), grad_norm.clone(), rate, skipped.clone())
        return StepReport(self.step, self.images, self.batch_size, *copies, began)

    def _computed_step(
        self, learning_rate: Tensor, ema_share: Tensor, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run a step with the inputs of `Gradient.compute`; return loss, gradient norm and whether it was skipped."""
        loss = self.ranks.all_reduce_mean(self.gradient.compute(*inputs))  # type: ignore[arg-type]
        return (loss, *self.update.step(learning_rate, ema_share, loss))

    def _cut(self) -> tuple[int, bool]:
        return self.gradient.accumulate, bool(getattr(self.diffusion.model, "recompute", False))

    def _randomness(self) -> StepRandomness:
        """Return this process's random numbers of the next step."""
        whole = StepRandomness.of(self.diffusion, self.batch_size, self.seed, self.step)
        return whole.part(self.ranks.share(self.batch_size))

    def _stop_if_diverged(self) -> None:
        # Reading the counts waits for a GPU, so they are read every `MAX_BAD_STEPS` steps and at the end.
        always = self.diffusion.device.type == "cpu" or self.step == self.total_steps
        if always or self.step % MAX_BAD_STEPS == 0:
            check_steps(self.update, self.step, self.total_steps, self.max_skipped_share)

    def _rate(self) -> float:
        if self.warmup_images == 0:
            return self.learning_rate
        return self.learning_rate * min(1.0, (self.images + self.batch_size) / self.warmup_images)

    def batch(self, step: int) -> Tensor:
        """Return the indices of the images of a step, counted from 1, int64 (batch_size,)."""
        return self.order.batch(step - 1, self.batch_size)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of a checkpoint: model, EMA, optimizer, and the counts of images and of skipped steps.

        They are those that the next step changes; `Saver` copies them.
        """
        return {
            "model": dict(self.diffusion.model.state_dict()),
            "ema": dict(self.ema.module.model.state_dict()),
            "optimizer": self.update.tensors(),
            "trainer": {**self.update.counts(), "images": torch.tensor(self.images)},
        }

    def restore(self, step: int, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Resume after `step` steps from the tensors of a checkpoint.

        Raises:
            RuntimeError: the checkpoint is of another network; the message lists the differences.
            ValueError: its steps had another batch size, on which order, learning rate and EMA depend.
        """
        images = int(tensors["trainer"]["images"])
        if images != step * self.batch_size:
            raise ValueError(
                f"the checkpoint has {images} images in {step} steps, and batch_size is {self.batch_size}: restore it"
                " with the batch size of its training, or begin a new training from its weights"
            )
        self.diffusion.model.load_state_dict(tensors["model"])
        self.ema.module.model.load_state_dict(tensors["ema"])
        self.update.restore(tensors["optimizer"], tensors["trainer"])
        self.step = step
