"""The library as a researcher meets it: outside the repository, with PyTorch and nothing else."""

import subprocess
import sys

QUICKSTART = """
import torch
from diffusion_core import DDIM, GaussianDiffusion, Unet

model = Unet(dim=8, dim_mults=(1, 2, 4), channels=3, self_condition=True)
diffusion = GaussianDiffusion(model, image_size=32, timesteps=1000, objective="pred_v", beta_schedule="sigmoid")
loss = diffusion(torch.rand(2, 3, 32, 32))
loss.backward()
samples = diffusion.sample(batch_size=2, sampler=DDIM(steps=3, eta=0.0))
assert samples.shape == (2, 3, 32, 32) and 0.0 <= float(samples.min()) and float(samples.max()) <= 1.0
assert all(each.grad is not None for each in model.parameters())
"""

# Everything that is not PyTorch's own is hidden from the import system first.
ALONE = """
import sys

class Hidden:
    names = {
        "boto3", "dvc", "matplotlib", "mlflow", "PIL", "prefect", "pyarrow", "pydantic", "pydantic_settings",
        "safetensors", "scipy", "skimage", "sklearn", "tqdm", "yaml", "numpy", "dotenv", "filelock", "psutil", "typer",
    }
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)

sys.meta_path.insert(0, Hidden())
"""


def run(code, folder):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_quickstart_runs_outside_the_repository_with_pytorch_alone(tmp_path):
    done = run(ALONE + QUICKSTART, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_hiding_hides(tmp_path):
    done = run(ALONE + "import diffusion_core.config.settings", tmp_path)
    assert "is hidden" in done.stderr


def test_import_loads_no_server_library(tmp_path):
    done = run(
        "import sys, diffusion_core; print(sorted({'mlflow', 'prefect', 'dvc', 'boto3'} & set(sys.modules)))", tmp_path
    )
    assert done.stdout.strip() == "[]"


def test_the_command_without_its_libraries_says_what_to_install(tmp_path):
    done = run(ALONE + "import runpy; runpy.run_module('diffusion_core', run_name='__main__')", tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: the command needs typer: say `make setup` in a checkout of the project\n"


LAZY = """
import ast, inspect, sys
import diffusion_core
assert "torch" not in sys.modules
tree = ast.parse(inspect.getsource(diffusion_core))
imports = [each for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for each in node.names]
typed = {each.asname for each in imports if each.asname}
assert typed == set(diffusion_core.__all__), typed ^ set(diffusion_core.__all__)
for name in diffusion_core.__all__:
    assert getattr(diffusion_core, name).__name__ == name
assert "torch" in sys.modules
assert set(diffusion_core.__all__) <= set(dir(diffusion_core))
from diffusion_core import *
assert Unet is diffusion_core.Unet
try:
    diffusion_core.Unett
except AttributeError as error:
    assert str(error) == "module 'diffusion_core' has no attribute 'Unett'"
"""


def test_a_name_loads_torch_when_it_is_first_used(tmp_path):
    done = run(LAZY, tmp_path)
    assert done.returncode == 0, done.stderr


def test_flows_and_the_stack_load_no_torch():
    code = "import sys, flows.pipeline, stack.__main__, stack.serve\n"
    code += "print([name for name in ('torch', 'mlflow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == "[]"
