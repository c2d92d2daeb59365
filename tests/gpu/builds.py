"""What is trained to check a device: small networks of every kind, all of one geometry, so that they share kernels."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from benchmarks.photographs import photographs
from diffusion_core import GaussianDiffusion, LearnedGaussianDiffusion, TensorData, Unet
from diffusion_core.runtime.distributed import Ranks
from diffusion_core.training.randomness import StepRandomness
from diffusion_core.training.step import Gradient

CLASSES = 4
KINDS = {
    "plain": {},
    "self-conditioned": {"self_condition": True},
    "class-conditional": {"num_classes": CLASSES, "cond_drop_prob": 0.2},
    "learned variance": {"learned_variance": True},
}
ALL = {name: option for options in KINDS.values() for name, option in options.items()}


@dataclass(frozen=True)
class Geometry:
    """A network and its images.

    Attributes:
        dim, dim_mults: of the network.
        side: of an image, in pixels.
        batch: images a step.
    """

    dim: int
    dim_mults: tuple[int, ...]
    side: int
    batch: int


GPU = Geometry(64, (1, 2), 32, 64)
# A compiler needs seconds for each of its three regions on a CPU.
TINY = Geometry(8, (1,), 8, 16)


def geometry(device):
    """Return the one geometry of all networks that are compiled."""
    return GPU if device.type == "cuda" else TINY


def build(kind, device, shape, *, dropout=0.0, network=Unet):
    """Return a process and its network, with the same weights on every device; `kind` may also be "all"."""
    torch.manual_seed(1)
    options = KINDS.get(kind, ALL)
    process = LearnedGaussianDiffusion if options.get("learned_variance") else GaussianDiffusion
    model = network(shape.dim, dim_mults=shape.dim_mults, dropout=dropout, **options)
    return process(model, image_size=shape.side).to(device)


@lru_cache
def pictures(count, side):
    """Return photographs made by a formula, in classes by how bright they are."""
    return by_brightness(photographs(count, side, seed=0))


def by_brightness(images):
    brightness = images.float().mean((1, 2, 3))
    levels = brightness.quantile(torch.arange(1, CLASSES) / CLASSES)
    return TensorData(images, torch.bucketize(brightness, levels))


def step_gradient(diffusion, dtype=torch.float32, accumulate=1):
    return Gradient(diffusion, dtype, accumulate, True, Ranks())


def step_inputs(gradient, shape, step):
    """Return what `gradient.compute` takes at a step, from randomness that are made on the CPU."""
    device, dtype = gradient.diffusion.device, next(gradient.diffusion.parameters()).dtype
    images, labels = pictures(512, shape.side).batch(torch.arange(shape.batch) + step * shape.batch)
    on_cpu = _Like(gradient.diffusion)
    randomness = StepRandomness.of(on_cpu, shape.batch, 0, step)
    return gradient.inputs(images.to(device), labels, replace(randomness, noise=randomness.noise.to(device, dtype)))


class _Like:
    """What `StepRandomness` asks of a process, on the CPU."""

    def __init__(self, diffusion):
        self.device = torch.device("cpu")
        for name in ("cond_drop_prob", "channels", "image_size", "num_timesteps", "offset_noise_strength"):
            setattr(self, name, getattr(diffusion, name))


def replaying(trainer):
    """Let a trainer replay its steps as CUDA graphs without compiling them, and without a check before."""
    trainer.ways.replayed = True
    return trainer


def relative(one, other):
    """Return the greatest distance of two dictionaries of tensors, each as a share of the other's norm."""
    assert one.keys() == other.keys()
    pairs = [(one[name].double().cpu(), other[name].double().cpu()) for name in other]
    return max(float((a - b).norm() / b.norm().clamp(min=1e-30)) if not torch.equal(a, b) else 0.0 for a, b in pairs)


class Small(Unet):
    """Has memory for `room` images, of which twice as many fit where activations are computed again."""

    room = 10**6

    def forward(self, x, *others):
        if torch.is_grad_enabled() and len(x) > self.room * (2 if self.recompute else 1):
            raise torch.OutOfMemoryError(f"tried to hold {len(x)} images")
        return super().forward(x, *others)
