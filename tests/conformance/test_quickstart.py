"""The first example of denoising-diffusion-pytorch's README runs with only the import line changed."""

import subprocess
import sys

THEIR_IMPORT = "from denoising_diffusion_pytorch import Unet, GaussianDiffusion"
OUR_IMPORT = "from diffusion_core import Unet, GaussianDiffusion"

# As it stands there, version 2.3.4.
QUICKSTART = f"""
import torch
{THEIR_IMPORT}

model = Unet(
    dim = 64,
    dim_mults = (1, 2, 4, 8),
    flash_attn = True
)

diffusion = GaussianDiffusion(
    model,
    image_size = 128,
    timesteps = 1000    # number of steps
)

training_images = torch.rand(8, 3, 128, 128) # images are normalized from 0 to 1
loss = diffusion(training_images)
loss.backward()

# after a lot of training

sampled_images = diffusion.sample(batch_size = 4)
sampled_images.shape # (4, 3, 128, 128)
"""
# On 128 pixels, a thousand steps take an hour on a CPU.
SMALLER = {"dim = 64": "dim = 8", "image_size = 128": "image_size = 16", "128, 128)": "16, 16)", "= 1000": "= 12"}


def test_the_quickstart_runs_with_only_the_import_line_changed(tmp_path):
    code = QUICKSTART.replace(THEIR_IMPORT, OUR_IMPORT)
    for shown, instead in SMALLER.items():
        assert shown in code
        code = code.replace(shown, instead)
    check = """
assert sampled_images.shape == (4, 3, 16, 16), sampled_images.shape
assert 0 <= float(sampled_images.min()) <= float(sampled_images.max()) <= 1
assert all(each.grad is not None for each in model.parameters())
"""
    done = subprocess.run(
        [sys.executable, "-c", code + check], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
