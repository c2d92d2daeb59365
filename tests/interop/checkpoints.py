"""Checkpoints as denoising-diffusion-pytorch saves them, with tables and weights that the package made."""

import json

import torch

from diffusion_core import Unet
from tests.conformance import cases
from tests.conformance.golden import FOLDER, GOLDEN

ORACLE = json.loads((FOLDER / "oracle.json").read_text(encoding="utf-8"))
OPTIONS = {cases.unet_name(options): options for options in cases.UNETS}
# The smallest network whose outputs the package has recorded, and one that is for its tables: it is written in no time.
RECORDED = "32x1-2-4 1 self"
TINY = "8x1-2 1 self"
_TINY = Unet(8, dim_mults=(1, 2), channels=1, self_condition=True).state_dict()
SHAPES = ORACLE["unets"] | {TINY: {key: tuple(weights.shape) for key, weights in _TINY.items()}}


def tables(schedule="cosine", objective="pred_x0", weighting="min_snr"):
    """The process's part of a checkpoint, as the package made it."""
    named = {name: GOLDEN[f"{schedule}/{name}"].float() for name in ORACLE["trainer"]["tables"][:-1]}
    return named | {"loss_weight": GOLDEN[f"{schedule}/{objective}/{weighting}/loss_weight"].float()}


def checkpoint(name, **chosen):
    """What the package's trainer saves, by the names that it used."""
    online, average = (cases.weights(SHAPES[name], which) for which in ("model", "ema"))

    def below(prefix, state):
        return {f"{prefix}{key}": value for key, value in state.items()}

    process = {**tables(**chosen), **below("model.", online)}
    ema = below("ema_model.", {**tables(**chosen), **below("model.", average)})
    outside = {key: torch.tensor(True) for key in ORACLE["trainer"]["ema"]}
    optimizer = {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 8e-5, "betas": (0.9, 0.99)}]}
    return {
        "step": 100_000,
        "model": process,
        "opt": optimizer,
        "ema": {**ema, **below("online_model.", process), **outside},
        "scaler": None,
        "version": ORACLE["package"],
    }
