"""What is compared: the inputs and the network, the same for the oracle and for this project.

The numbers come from NumPy's RandomState, whose stream never changes (NEP 19).
"""

import zlib
from functools import cache

import numpy as np
import torch
from torch import nn

OBJECTIVES = ("pred_noise", "pred_x0", "pred_v")
SCHEDULES = ("linear", "cosine", "sigmoid")
DTYPES = {"float32": torch.float32, "float64": torch.float64}
WEIGHTINGS = ("plain", "min_snr", "p2")

# For tables and single steps, and for whole walks.
TIMESTEPS, FEW_TIMESTEPS = 1000, 30
TIMES = (0, 1, 500, 999)
SHAPE = (4, 2, 4, 6)
WALK_SHAPE = (2, 2, 4, 6)
# Every so many steps of a walk are kept, and the last.
KEPT = 6
DDIM_STEPS = (1, 4, 30)
DDIM_ETAS = (0.0, 0.5)
MIN_SNR_GAMMA = 4.0
P2_GAMMA, P2_K = 0.7, 1.3
OFFSET_STRENGTH = 0.3


def numbers(name, shape, dtype=torch.float64):
    """Return standard normal numbers that depend on the name alone."""
    drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    return torch.from_numpy(np.asarray(drawn)).to(dtype)


def x0(dtype):
    return numbers("x0", SHAPE, dtype).clamp(-1.5, 1.5) / 1.5


def times():
    return torch.tensor(TIMES)


def replay(name, shape, dtype):
    """Yield one noise after the other."""
    index = 0
    while True:
        yield numbers(f"{name} {index}", shape, dtype)
        index += 1


class Waves(nn.Module):
    """Stands for a network: smooth in x, t and the guess before, and mixing pixels and channels."""

    def __init__(self, self_condition=False, outputs=1):
        super().__init__()
        self.channels = SHAPE[1]
        self.out_dim = self.channels * outputs
        self.self_condition = self_condition
        self.outputs = outputs
        # Older versions of the package ask for it.
        self.random_or_learned_sinusoidal_cond = False

    def forward(self, x, time, x_self_cond=None):
        before = torch.zeros_like(x) if x_self_cond is None else x_self_cond
        phase = (time.to(x.dtype) / 300.0)[:, None, None, None]
        mixed = 0.8 * x + 0.4 * x.roll(1, -1) - 0.3 * x.flip(1).roll(1, -2) + 0.25 * before
        waves = [torch.sin(mixed * (1.0 + 0.5 * part) + phase) for part in range(self.outputs)]
        return torch.cat(waves, dim=1)


# --- the U-Net of checkpoints

UNETS = [
    {"dim": dim, "dim_mults": mults, "self_condition": self_condition, "channels": channels}
    for dim in (32, 64)
    for mults in ((1, 2, 4), (1, 2, 4, 8))
    for self_condition in (False, True)
    for channels in (1, 3)
]


def unet_name(options):
    mults = "-".join(map(str, options["dim_mults"]))
    return f"{options['dim']}x{mults} {options['channels']} {'self' if options['self_condition'] else 'plain'}"


def weights(shapes, seed):
    """Return a state_dict with these shapes, such that signals keep about their size."""
    state = {}
    for name, shape in shapes.items():
        drawn = _quick_numbers(f"{seed} {name}", shape)
        if name.endswith(".g"):
            drawn = 1.0 + 0.1 * drawn
        elif name.endswith("bias"):
            drawn = 0.1 * drawn
        elif name.endswith("weight"):
            drawn = drawn / float(np.prod(shape[1:])) ** 0.5
        state[name] = drawn
    return state


def _quick_numbers(name, shape):
    """Return a piece of one long series; a network of 36 million weights takes too long otherwise."""
    series, count = _series(), int(np.prod(shape))
    turned = series.roll(zlib.crc32(name.encode()) % len(series))
    return turned.repeat(-(-count // len(series)))[:count].reshape(shape)


@cache
def _series():
    return numbers("weights", (2**20 + 7,), torch.float32)


def unet_input(options):
    """Return x, t and the guess before."""
    shape = (2, options["channels"], 16, 24)
    return (
        numbers("unet x", shape, torch.float32),
        torch.tensor([3, 871]),
        numbers("unet before", shape, torch.float32) if options["self_condition"] else None,
    )
