"""The self-check of `doctor`: checks a device with a small network, without a training run."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

import torch

from diffusion_core.networks.unet import Unet
from diffusion_core.process.learned_gaussian_diffusion import LearnedGaussianDiffusion
from diffusion_core.runtime.compilation import compile_for_sampling, compile_network
from diffusion_core.runtime.distributed import Ranks
from diffusion_core.runtime.precision import exact_float32
from diffusion_core.self_check.comparison import TOLERANCE, Verdict, compare
from diffusion_core.self_check.sampling import check_sampling
from diffusion_core.self_check.training import check_training, step_values
from diffusion_core.training.randomness import StepRandomness
from diffusion_core.training.step import Gradient

BATCH = 16


def check_device(device: torch.device, dtype: torch.dtype, *, compiled: bool, replayed: bool) -> Iterator[Verdict]:
    """Yield verdicts for a small network that uses every feature; the first is that of eager float32.

    The reference of the first is float64 on a CPU. The reference of the others is eager float32 on the device, as in
    `check_training`.

    Args:
        device: the device to check.
        dtype: dtype of the network's matrix products, as chosen for training.
        compiled: whether training compiles the network.
        replayed: whether training replays steps as a CUDA graph.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Unet(32, dim_mults=(1, 2), channels=3, self_condition=True, num_classes=4, learned_variance=True)
    exact = LearnedGaussianDiffusion(network, image_size=16, vb_loss_weight=0.1)
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 3, 16, 16), dtype=torch.uint8, generator=source)
    labels = torch.arange(BATCH) % 4
    randomness = StepRandomness.of(exact, BATCH, seed=0, step=0)
    diffusion = deepcopy(exact).to(device)
    there = (images.to(device), labels, replace(randomness, noise=randomness.noise.to(device)))

    # float32 here only disables autocast: the parameters are float64.
    reference = Gradient(exact.double(), torch.float32, 1, False, Ranks())
    eager = Gradient(diffusion, torch.float32, 1, False, Ranks())
    true = step_values(reference, reference.compute, images, labels, randomness)
    with exact_float32():
        values = step_values(eager, eager.compute, *there)
    yield compare("float32, eager, beside a CPU's float64", true, true, values, TOLERANCE[torch.float32])

    if compiled:
        compile_network(diffusion.model)
    if compiled or replayed or dtype != torch.float32:
        gradient = Gradient(diffusion, dtype, 1, False, Ranks())
        yield from check_training(gradient, *there, compiled=compiled, replayed=replayed)
    if compiled:
        plain = deepcopy(diffusion).eval().requires_grad_(False)
        fast = deepcopy(plain)
        compile_for_sampling(fast.model)
        yield check_sampling(plain, fast, dtype, BATCH)
