import subprocess
import sys
from itertools import permutations

import torch

from diffusion_core import GaussianDiffusion
from diffusion_core.process.noise import assign_noise
from tests.conftest import Network


def test_the_assignment_is_the_best_of_all_permutations():
    images, noise = torch.randn(2, 6, 2, 3, 3, dtype=torch.float64)
    chosen = assign_noise(images, noise)

    def length(permutation):
        return float((images - noise[list(permutation)]).flatten(1).norm(dim=1).sum())

    assert sorted(chosen.tolist()) == list(range(6))
    assert length(chosen.tolist()) <= min(map(length, permutations(range(6)))) + 1e-5


def test_an_image_is_trained_on_the_noise_that_it_got():
    """Noise and target are permuted together: a network that knows which noise is in x_t has no loss."""
    x0, noise = torch.rand(2, 8, 1, 4, 4, dtype=torch.float64) * 2 - 1
    t = torch.full((8,), 600)

    def oracle(x, t, _):
        return (x - diffusion.sqrt_alphas_cumprod[t][:, None, None, None] * x0) / (
            diffusion.sqrt_one_minus_alphas_cumprod[t][:, None, None, None]
        )

    diffusion = GaussianDiffusion(Network(oracle), image_size=4, objective="pred_noise", immiscible=True).double()
    assert not torch.equal(assign_noise(x0, noise), torch.arange(8))
    assert float(diffusion.p_losses(x0, t, noise)) < 1e-20


def test_the_noise_is_handed_out_and_not_changed():
    seen = []
    network = Network(lambda x, t, _: seen.append(x) or torch.zeros_like(x))
    diffusion = GaussianDiffusion(network, image_size=4, objective="pred_x0", immiscible=True, timesteps=1000).double()
    x0 = torch.zeros(16, 1, 4, 4, dtype=torch.float64) + torch.linspace(-1, 1, 16)[:, None, None, None]
    noise = torch.randn(16, 1, 4, 4, dtype=torch.float64)
    diffusion.p_losses(x0, torch.full((16,), 999), noise)
    # At the last timestep x_t is as good as the noise, which has the images' brightness in order.
    given = sorted(noise.flatten(1).mean(1).tolist())
    torch.testing.assert_close(
        torch.tensor(sorted(seen[0].flatten(1).mean(1).tolist())), torch.tensor(given), atol=1e-2, rtol=0
    )
    brightness = seen[0].flatten(1).mean(1)
    assert float(torch.corrcoef(torch.stack((brightness, x0.flatten(1).mean(1))))[0, 1]) > 0.8


def test_it_costs_nothing_to_do_without_scipy_until_it_is_asked_for():
    code = """
import sys
sys.modules["scipy"] = sys.modules["scipy.optimize"] = None
from diffusion_core import GaussianDiffusion, Unet
network = Unet(8, dim_mults=(1,), channels=1)
GaussianDiffusion(network, image_size=4)
try:
    GaussianDiffusion(network, image_size=4, immiscible=True)
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "immiscible is True, which needs SciPy: install it with `pip install scipy`\n"
