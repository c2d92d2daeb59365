"""The oracle's numbers, and what "equal" means."""

from pathlib import Path

import numpy as np
import torch

from diffusion_core import GaussianDiffusion
from tests.conformance import cases

FOLDER = Path(__file__).parent
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}

with np.load(FOLDER / "golden.npz", allow_pickle=False) as archive:
    GOLDEN = {name: torch.from_numpy(archive[name]) for name in archive.files}

# Every process that is compared, as (schedule, objective, self-conditioned).
PROCESSES = [
    (schedule, objective, self_condition)
    for schedule in cases.SCHEDULES
    for objective in cases.OBJECTIVES
    for self_condition in (False, True)
]


def key(schedule, objective, self_condition, dtype):
    return f"{schedule}/{objective}/{'self' if self_condition else 'plain'}/{dtype}"


def process(dtype, network=None, timesteps=cases.TIMESTEPS, kind=GaussianDiffusion, **options):
    diffusion = kind(
        network or cases.Waves(), image_size=cases.SHAPE[2:], timesteps=timesteps, auto_normalize=False, **options
    )
    return diffusion.double() if dtype == "float64" else diffusion


def assert_equal(actual, name, dtype):
    """Assert that numbers differ by at most 1e-5 (float32) or 1e-10 (float64) of the greatest of them."""
    expected = GOLDEN[name]
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        actual,
        expected,
        rtol=tolerance,
        atol=tolerance * float(expected.abs().max()),
        msg=lambda text: f"{name}: {text}",
    )
