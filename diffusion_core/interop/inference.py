"""Infers the options of network and process from a checkpoint of denoising-diffusion-pytorch.

The shapes and tables determine all options except the image size and dropout.
"""

from collections.abc import Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor

from diffusion_core.process.objectives import OBJECTIVES
from diffusion_core.process.schedules import Cosine, Linear, Sigmoid

State = Mapping[str, Tensor]


def network_options(state: State) -> dict[str, Any]:
    """Return the arguments of `Unet` for these weights.

    Raises:
        KeyError: a weight is missing that every such network has.
        ValueError: no known network has these numbers of input and output channels.
    """
    init_dim, inputs = state["init_conv.weight"].shape[:2]
    dim = state["time_mlp.1.weight"].shape[1]
    outputs = state["final_conv.weight"].shape[0]
    channels = min(inputs, outputs)
    if (inputs, outputs) not in ((channels, channels), (2 * channels, channels), (channels, 2 * channels)):
        raise ValueError(f"it takes {inputs} channels and gives {outputs}, which no Unet does")
    levels = _levels(state)
    heads, dims, full = zip(*(_attention(state, f"downs.{level}.2") for level in range(levels)), strict=True)
    widths = [state[f"downs.{level}.3.1.weight"].shape[0] for level in range(levels - 1)]
    widths.append(state[f"downs.{levels - 1}.3.weight"].shape[0])
    return {
        "dim": dim,
        "init_dim": init_dim,
        "dim_mults": [width // dim for width in widths],
        "channels": channels,
        "self_condition": inputs == 2 * channels,
        "learned_variance": outputs == 2 * channels,
        "attn_heads": heads[0] if len(set(heads)) == 1 else list(heads),
        "attn_dim_head": dims[0] if len(set(dims)) == 1 else list(dims),
        "full_attn": list(full),
    }


def _levels(state: State) -> int:
    for level in count():
        if f"downs.{level}.0.block1.proj.weight" not in state:
            # Without any level, raises a KeyError with the missing weight.
            return level or len(state["downs.0.0.block1.proj.weight"])
    raise AssertionError


def _attention(state: State, name: str) -> tuple[int, int, bool]:
    """Return heads, channels per head, and whether it is softmax attention."""
    full = f"{name}.to_out.weight" in state
    _, heads, *sizes = state[f"{name}.mem_kv"].shape
    return heads, sizes[1] if full else sizes[0], full


def process_options(tables: State) -> dict[str, Any]:
    """Return the arguments of `GaussianDiffusion` that these tables determine.

    Betas of no known schedule are one of their own, a table.

    Raises:
        ValueError: betas is not one-dimensional.
    """
    if "betas" not in tables:
        return {}
    betas = tables["betas"].double()
    if betas.ndim != 1:
        raise ValueError(f"betas is of shape {tuple(betas.shape)}, where it should have one value a timestep")
    options: dict[str, Any] = {"timesteps": len(betas)}
    options["beta_schedule"] = {"kind": "table", "values": betas.tolist()}
    for schedule in (Linear(), Cosine(), Sigmoid()):
        try:
            made = schedule.betas(len(betas))
        except ValueError:
            # This schedule does not exist for so few timesteps.
            continue
        if torch.allclose(made, betas, rtol=1e-4, atol=1e-9):
            options["beta_schedule"] = {"kind": schedule.kind}
    if "loss_weight" in tables:
        # Not from alphas_cumprod: in float32, 1 - abar loses all digits at timesteps with little noise.
        options |= _objective(tables["loss_weight"].double(), torch.cumprod(1.0 - betas, dim=0))
    return options


def _objective(weight: Tensor, alpha_bar: Tensor) -> dict[str, Any]:
    """Return the objective with these SNR or min-SNR weights, and the weighting; at most one matches."""
    snr = alpha_bar / (1.0 - alpha_bar)
    for name, objective in OBJECTIVES.items():
        # In x0-space the weight is SNR or min(SNR, gamma) for every objective.
        of_x0 = weight * objective.error_ratio(snr)
        gamma = round(float(of_x0.max()), 3)
        if torch.allclose(of_x0, snr, rtol=1e-3):
            return {"objective": name, "weighting": {"kind": "snr"}}
        if torch.allclose(of_x0, snr.clamp(max=gamma), rtol=1e-3):
            return {"objective": name, "weighting": {"kind": "min_snr", "gamma": gamma}}
    return {}
