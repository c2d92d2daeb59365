"""The ways of running a step (eager, compiled, replayed as a CUDA graph), and which of them a training uses."""

import logging

import torch
from torch import Tensor

from diffusion_core.runtime.compilation import compile_network, compiler_problem, forget_compilation
from diffusion_core.runtime.precision import Precision
from diffusion_core.self_check.comparison import Verdict
from diffusion_core.self_check.training import check_training
from diffusion_core.training.randomness import StepRandomness
from diffusion_core.training.step import Gradient

logger = logging.getLogger(__name__)


class Ways:
    """Selects the fastest way of running a step that gives what eager float32 gives.

    Args:
        gradient: computes the gradient of a step; its network is compiled in place.
        precision: of the steps; float32 if the self-check finds it wrong.
        compiled: compile the network, and replay steps as a CUDA graph where one can record them.

    Attributes:
        precision: of the steps.
        compiled: whether the network is compiled.
        replayed: whether a CUDA graph replays the steps.
        unchecked: whether the self-check is due before the next step.
        verdicts: results of the last self-check, one per way.
    """

    def __init__(self, gradient: Gradient, precision: Precision, compiled: bool) -> None:
        self.gradient = gradient
        self.precision = precision
        self.verdicts: list[Verdict] = []
        self.compiled = compiled and self._compile()
        self.replayed = compiled and self.can_be_replayed()
        self.unchecked = self.compiled or self.replayed or precision.dtype != torch.float32

    def _compile(self) -> bool:
        """Compile the network on all processes or none, for their common self-check; return whether it is compiled."""
        diffusion = self.gradient.diffusion
        problem = compiler_problem(diffusion.device)
        if self.gradient.ranks.all_reduce_max(int(problem is not None)):
            reason = problem or "another process cannot compile it"
            logger.warning("the network is not compiled (%s): training is slower", reason)
            return False
        compile_network(diffusion.model)
        return True

    def can_be_replayed(self) -> bool:
        """Return whether a CUDA graph can record a whole step."""
        diffusion, ranks = self.gradient.diffusion, self.gradient.ranks
        if diffusion.device.type != "cuda":
            return False
        reason = "several processes train" if ranks.count > 1 else ""
        reason = "immiscible noise is assigned on the host" if diffusion.immiscible else reason
        reason = "activations are computed again" if getattr(diffusion.model, "recompute", False) else reason
        if reason and ranks.is_main:
            logger.warning("steps are not replayed as a CUDA graph (%s): slower where images are small", reason)
        return not reason

    def changed_shapes(self) -> None:
        """Check compiled and replayed steps again before the next one, because micro-batches have another size."""
        self.unchecked = self.compiled or self.replayed

    def check(self, images: Tensor, labels: Tensor | None, randomness: StepRandomness) -> None:
        """Compare each way of running a step with eager float32, and select the fastest correct way."""
        gradient, ranks = self.gradient, self.gradient.ranks
        ways = {"compiled": self.compiled, "replayed": self.replayed}
        self.verdicts = [*check_training(gradient, images, labels, randomness, **ways)]
        if not self.verdicts[-1].passed or len(self.verdicts) < 1 + sum(ways.values()):
            logger.warning("self-check: %s; training continues in a slower way", self.verdicts[-1])
        # The order is eager, compiled, replayed. All processes use only the ways that passed on every process.
        count = 1 + sum(ways.values())
        own = sum(verdict.passed for verdict in self.verdicts)
        right = count - ranks.all_reduce_max(count - own)
        if right < own:
            self.verdicts.append(
                Verdict("another process", False, problem="its self-check failed, so no process uses this way")
            )
        if right < 1:
            self.precision = Precision(torch.float32, f"the self-check found {self.verdicts[-1]}")
            gradient.dtype = torch.float32
        self.replayed = self.replayed and right == count
        if self.compiled and right < 2:
            forget_compilation(gradient.diffusion.model)
            self.compiled = False
        self.unchecked = False
