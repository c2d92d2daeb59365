"""From the same noise, each sampler comes to the CPU's images."""

from copy import deepcopy

import pytest
import torch

from diffusion_core import DDIM, DDPM, DPMSolver, Guidance, Heun, ImageNoise
from tests.gpu.builds import CLASSES, Geometry, build

SHAPE = Geometry(32, (1, 2), 16, 6)
SAMPLERS = {
    "ddpm, 50 steps": DDPM(steps=50),
    "ddim, 20 steps": DDIM(steps=20),
    "ddim, 20 steps, eta 0.5": DDIM(steps=20, eta=0.5),
    "dpm_solver, 15 steps": DPMSolver(steps=15),
    "heun, 10 steps": Heun(steps=10),
}
GUIDANCES = {
    "no guidance": Guidance(),
    "guidance": Guidance(scale=3.0, rescale=0.5, interval=(0.2, 20.0)),
}
LIMIT = 1e-4


@pytest.fixture(scope="module")
def processes(device):
    """Every kind at once, and the plain one, whose variance is DDPM's own; each on the CPU and on the device."""
    made = {kind: build(kind, "cpu", SHAPE).eval() for kind in ("all", "plain")}
    return {kind: (each, deepcopy(each).to(device)) for kind, each in made.items()}


def farthest(pair, draw_images):
    """Return the greatest distance of a pixel."""
    ours, theirs = (draw_images(process, ImageNoise(7, range(SHAPE.batch))) for process in pair)
    assert 0.0 <= float(ours.min()) < float(ours.max()) <= 1.0
    return (ours - theirs.cpu()).abs().max()


@pytest.mark.parametrize("guidance", GUIDANCES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_comes_to_the_cpus_images(sampler, guidance, processes, record):
    def draw_images(process, noise):
        return process.sample(
            SHAPE.batch,
            sampler=SAMPLERS[sampler],
            randn=noise,
            classes=torch.arange(SHAPE.batch) % CLASSES,
            guidance=GUIDANCES[guidance],
        )

    record(f"{sampler}, {guidance}: pixel", farthest(processes["all"], draw_images), LIMIT)


def test_a_plain_network_comes_to_the_cpus_images(processes, record):
    def draw_images(process, noise):
        return process.sample(SHAPE.batch, sampler=DDPM(steps=50), randn=noise)

    record("ddpm, 50 steps, plain network: pixel", farthest(processes["plain"], draw_images), LIMIT)


def test_inpainting_comes_to_the_cpus_images(processes, record):
    mask = torch.ones(SHAPE.side, SHAPE.side)
    mask[4:12, 4:12] = 0.0
    images = torch.rand(SHAPE.batch, 3, SHAPE.side, SHAPE.side, generator=torch.Generator().manual_seed(3))

    def draw_images(process, noise):
        options = {"sampler": DDIM(steps=8), "jump_length": 3, "resamplings": 2}
        return process.inpaint(images.to(process.device), mask, randn=noise, **options)

    record("inpainting: pixel", farthest(processes["plain"], draw_images), LIMIT)
