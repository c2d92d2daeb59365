"""The training loop, a generator of step reports: whoever iterates decides when to log, save and stop."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext

import torch
from torch import Tensor

from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.randomness import derive_seed
from diffusion_core.runtime.compilation import compile_network, compiler_problem, forget_compilation
from diffusion_core.runtime.device import to_device
from diffusion_core.runtime.distributed import Ranks
from diffusion_core.runtime.precision import Precision, choose_precision
from diffusion_core.runtime.recording import Replayed
from diffusion_core.runtime.threads import ThreadChoice
from diffusion_core.self_check.comparison import Verdict
from diffusion_core.self_check.training import check_training
from diffusion_core.training.data import TrainingData, batch_indices, batches, resident
from diffusion_core.training.ema import EMA
from diffusion_core.training.optimizer import Update
from diffusion_core.training.randomness import StepRandomness
from diffusion_core.training.step import Gradient, StepReport

logger = logging.getLogger(__name__)

# Steps in a row whose gradient is not finite, after which training has diverged.
MAX_BAD_STEPS = 10


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite."""


class Trainer:
    """Trains a diffusion process; every draw is a function of (seed, step), so a resumed run equals an unbroken one.

    Draws are made for the whole batch and cut as the batch is, so neither micro-batches nor the number of processes
    change what is trained, beyond rounding; dropout and immiscible noise alone look at the part that they are given.

    It seeds torch's global generator at every step, because dropout layers draw from nothing else. On a CPU, call
    `keep_freed_memory` before: it is worth a seventh of a step.

    Args:
        diffusion: on the device where it is to be trained.
        data: the images, uint8.
        images: training budget, in images; rounded up to whole batches.
        batch_size: images a step, over all processes.
        accumulate: micro-batches that a process's part of a batch is cut into to save memory. Where a GPU's memory is
            too small all the same, batches are cut smaller, and then activations are computed again in the backward
            pass; not so where several processes train.
        seed: of the data order and all noise.
        learning_rate: of AdamW, reached after `warmup_images`.
        betas: of AdamW.
        weight_decay: of AdamW.
        warmup_images: the learning rate rises evenly over so many images.
        max_grad_norm: gradients longer than this are scaled down to it.
        ema_halflife_images: see `EMA`.
        horizontal_flip: mirror every other image, at random.
        precision: "auto", "float32" or "bfloat16"; see `choose_precision`.
        compiled: let torch.compile build the network's kernels; on a CUDA device a whole step is then one CUDA graph,
            where one process trains. What cannot be compiled or recorded runs without, after a warning.
        threads: chooses how many threads a step uses on a CPU, where one process trains; their number stays if None.
        ranks: the processes that share each batch.

    Attributes:
        verdicts: what the self-check before the first step found, way by way. Empty before that step, and where steps
            are eager and in float32, which is what the check compares with.

    Raises:
        ValueError: a number is below 1, the processes and micro-batches do not divide `batch_size`, there is no data,
            or the device lacks the precision.
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
        compiled: bool = False,
        threads: ThreadChoice | None = None,
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    ) -> None:
        for name, value in (("images", images), ("batch_size", batch_size), ("accumulate", accumulate)):
            if value < 1:
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
        self.seed = seed
        self.learning_rate = learning_rate
        self.warmup_images = warmup_images
        self.precision = choose_precision(precision, diffusion.device)
        self.threads = threads
        self.ranks = ranks
        self.ema = EMA(diffusion, ema_halflife_images)
        self.update = Update(
            diffusion,
            self.ema,
            learning_rate=learning_rate,
            betas=betas,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
        )
        self.step = 0
        self.gradient = Gradient(diffusion, self.precision.dtype, accumulate, horizontal_flip, ranks)
        self.verdicts: list[Verdict] = []
        self._compiled = compiled and self._compile()
        self._replayed = compiled and self._can_be_replayed()
        self._unchecked = self._compiled or self._replayed or self.precision.dtype != torch.float32
        self._run: Callable[..., tuple[Tensor, Tensor, Tensor]] = self._computed_step

    def _compile(self) -> bool:
        """Compile the network; return whether that was possible.

        Either all processes compile or none, because they check what they have compiled together.
        """
        problem = compiler_problem(self.diffusion.device)
        if self.ranks.all_reduce_max(int(problem is not None)):
            reason = problem or "another process cannot compile it"
            logger.warning("the network is not compiled (%s): training is slower", reason)
            return False
        compile_network(self.diffusion.model)
        return True

    def _can_be_replayed(self) -> bool:
        """Return whether a CUDA graph may hold a whole step."""
        if self.diffusion.device.type != "cuda":
            return False
        reason = "several processes train" if self.ranks.count > 1 else ""
        reason = "immiscible noise is assigned on the host" if self.diffusion.immiscible else reason
        reason = "activations are computed again" if getattr(self.diffusion.model, "recompute", False) else reason
        if reason and self.ranks.is_main:
            logger.warning("steps are not replayed as a CUDA graph (%s): slower where images are small", reason)
        return not reason

    @property
    def images(self) -> int:
        """Images seen so far."""
        return self.step * self.batch_size

    def steps(self) -> Iterator[StepReport]:
        """Train until the budget is spent, yielding after each step.

        Raises:
            TrainingDiverged: the gradient was not finite for 10 steps in a row.
            OutOfMemory: the device cannot hold a single image's activations.
        """
        self.diffusion.train()
        share = self.ranks.share(self.batch_size)

        def indices(step: int) -> Tensor:
            whole = batch_indices(self.seed, step, self.batch_size, len(self.data))
            return whole[share.start : share.stop]

        remaining = range(self.step, self.total_steps)
        with ExitStack() as ending:
            if self.threads is not None:
                ending.callback(self.threads.close)
            yield from self._steps(indices, remaining)

    def _steps(self, indices: Callable[[int], Tensor], remaining: range) -> Iterator[StepReport]:
        for number, (images, labels) in enumerate(batches(self.data, indices, remaining, self.diffusion.device)):
            if self._unchecked:
                self._check(images, labels)
            if number == 0:
                # Recorded anew each time: a recording holds on to tensors that `restore` puts others in the place of.
                self.forget_recording()
            with nullcontext() if self.threads is None else self.threads.timed():
                report = self._train_step(images, labels)
            yield report

    def forget_recording(self) -> None:
        """Give back the memory that a recorded step holds on a GPU, gradients too; steps to come are recorded anew."""
        self.diffusion.zero_grad(set_to_none=True)
        self._run = Replayed(self._computed_step, "a step") if self._replayed else self._computed_step

    def _check(self, images: Tensor, labels: Tensor | None) -> None:
        """Compare ways of running a step with eager float32, and go on in the fastest that is right."""
        ways = {"compiled": self._compiled, "replayed": self._replayed}
        self.verdicts = [*check_training(self.gradient, images, labels, self._randomness(), **ways)]
        if not self.verdicts[-1].passed or len(self.verdicts) < 1 + sum(ways.values()):
            logger.warning("self-check: %s; training goes on the slower way", self.verdicts[-1])
        # Ways that are right, simplest first: eager, compiled, replayed. All processes take those that all find right.
        count = 1 + sum(ways.values())
        own = sum(verdict.passed for verdict in self.verdicts)
        right = count - self.ranks.all_reduce_max(count - own)
        if right < own:
            self.verdicts.append(Verdict("another process", False, problem="its self-check failed, so none goes on so"))
        if right < 1:
            self.precision = Precision(torch.float32, f"the self-check found {self.verdicts[-1]}")
            self.gradient.dtype = torch.float32
        self._replayed = self._replayed and right == count
        if self._compiled and right < 2:
            forget_compilation(self.diffusion.model)
            self._compiled = False
        self._unchecked = False

    def _train_step(self, images: Tensor, labels: Tensor | None) -> StepReport:
        began = time.monotonic()
        rate = self._rate()
        share = 1.0 - self.ema.decay(self.images + self.batch_size, self.batch_size)
        scalars = to_device(torch.tensor([rate, share]), self.diffusion.device).unbind()

        randomness = self._randomness()

        def run(*inputs: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
            # Dropout's masks, if any.
            torch.manual_seed(derive_seed(self.seed, self.step, "network", randomness.start))
            # Activations that are computed again need the host, which restores the generator's state.
            recomputes = getattr(self.diffusion.model, "recompute", False)
            return (self._computed_step if recomputes else self._run)(*scalars, *inputs)

        cut = self._cut()
        loss, grad_norm, skipped = self.gradient.attempt(run, images, labels, randomness)
        if self._cut() != cut:
            # Memory was too small: what runs from now on has other shapes, which nobody has checked or recorded.
            self._unchecked = self._compiled or self._replayed
            self.forget_recording()
        self.step += 1
        self._stop_if_diverged()
        # Copies, because the next step may overwrite what a recorded one returns.
        values = (loss.clone(), grad_norm.clone(), rate, skipped.clone())
        return StepReport(self.step, self.images, self.batch_size, *values, began)

    def _computed_step(
        self, learning_rate: Tensor, ema_share: Tensor, *inputs: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take a step with the inputs of `Gradient.compute`; return loss, norm of the gradient, and whether skipped."""
        loss = self.ranks.all_reduce_mean(self.gradient.compute(*inputs))  # type: ignore[arg-type]
        return (loss, *self.update.step(learning_rate, ema_share))

    def _cut(self) -> tuple[int, bool]:
        return self.gradient.accumulate, bool(getattr(self.diffusion.model, "recompute", False))

    def _randomness(self) -> StepRandomness:
        """Return this process's randomness of the step to come."""
        randomness = StepRandomness.of(self.diffusion, self.batch_size, self.seed, self.step)
        return randomness.part(self.ranks.share(self.batch_size))

    def _stop_if_diverged(self) -> None:
        # To read the count is to wait for a GPU, so there it is read now and then, and at the end.
        rarely = self.diffusion.device.type != "cpu" and self.step < self.total_steps
        if rarely and self.step % MAX_BAD_STEPS:
            return
        if int(self.update.most_bad_steps) >= MAX_BAD_STEPS:
            raise TrainingDiverged(
                f"the gradient was not finite for {MAX_BAD_STEPS} steps in a row, until step {self.step}:"
                " lower train.learning_rate, or set DIFFUSION_PRECISION=float32"
            )

    def _rate(self) -> float:
        if self.warmup_images == 0:
            return self.learning_rate
        return self.learning_rate * min(1.0, (self.images + self.batch_size) / self.warmup_images)

    # --- state

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return what a checkpoint must hold: the tensors of model, EMA and optimizer."""
        return {
            "model": dict(self.diffusion.model.state_dict()),
            "ema": dict(self.ema.module.model.state_dict()),
            "optimizer": self.update.tensors(),
            "trainer": self.update.counts(),
        }

    def restore(self, step: int, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Go on after `step` steps from the tensors of a checkpoint.

        Raises:
            RuntimeError: they are of another network; the message lists the differences.
        """
        self.diffusion.model.load_state_dict(tensors["model"])
        self.ema.module.model.load_state_dict(tensors["ema"])
        self.update.restore(tensors["optimizer"], tensors["trainer"])
        self.step = step
