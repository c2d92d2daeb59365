"""Every choice of process and sampler that params.yaml has goes through training and sampling."""

import json

import numpy as np
import pytest
import torch

from diffusion_core import LearnedGaussianDiffusion
from diffusion_core.config.settings import SampleSettings, TrainSettings
from diffusion_core.lineage.saved_model import load_model
from diffusion_core.samplers.ddpm import DDPM
from diffusion_core.samplers.dpm_solver import DPMSolver
from diffusion_core.samplers.guidance import Guidance
from diffusion_core.samplers.heun import Heun
from diffusion_core.stages import sample, train
from diffusion_core.stages.paths import MODELS, SAMPLES


def chosen(settings, network=(), process=()):
    content = settings.model_dump(mode="json")
    content["images"] = 64
    content["network"] |= dict(network)
    content["process"] |= dict(process)
    return TrainSettings.model_validate_json(json.dumps(content))


@pytest.mark.parametrize(
    ("network", "process", "sampler"),
    [
        ({"learned_variance": True}, {"objective": "pred_noise", "vb_loss_weight": 0.01}, DDPM(steps=5)),
        (
            {},
            {"zero_terminal_snr": True, "weighting": {"kind": "uniform"}, "loss": {"kind": "huber", "delta": 0.5}},
            DPMSolver(steps=5, spacing="trailing"),
        ),
        (
            {},
            {"immiscible": True, "offset_noise_strength": 0.1, "loss": {"kind": "l1"}, "timesteps": 50},
            Heun(steps=4),
        ),
    ],
    ids=["learned variance", "zero terminal SNR", "immiscible"],
)
def test_a_choice_is_trained_saved_and_sampled(project, environment, network, process, sampler):
    train.run(chosen(project.train, network, process), environment)
    model = load_model(MODELS)
    assert isinstance(model.diffusion, LearnedGaussianDiffusion) == ("learned_variance" in network)
    assert model.diffusion.zero_terminal_snr == process.get("zero_terminal_snr", False)
    assert model.diffusion.immiscible == process.get("immiscible", False)
    assert getattr(model.diffusion, "vb_loss_weight", None) == process.get("vb_loss_weight")
    assert all(bool(torch.isfinite(each).all()) for each in model.diffusion.model.parameters())
    changes = {"sampler": sampler, "guidance": Guidance(scale=2.0, rescale=0.5, interval=(0.1, 10.0))}
    sample.run(project.sample.model_copy(update=changes), environment)
    images = np.load(SAMPLES / "samples.npy")
    assert images.shape == (12, 8, 8, 1)
    # The picture of the way ends where the samples are, guided as they are.
    ends = sample._trajectories(model, project.sample.model_copy(update=changes), 4)[:, -1]
    assert np.abs(ends.astype(int) - images[:4]).max() <= 1


def test_sampler_and_guidance_survive_the_way_through_json(project):
    changes = {"sampler": Heun(steps=4, rho=5.0), "guidance": Guidance(scale=2.0, interval=(0.1, 10.0))}
    changed = project.sample.model_copy(update=changes)
    assert SampleSettings.model_validate_json(changed.model_dump_json(), strict=True) == changed
