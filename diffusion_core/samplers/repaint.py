"""Inpainting by RePaint, Lugmayr et al. 2022 (https://arxiv.org/abs/2201.09865), algorithm 1, by any fit sampler.

After each step the known pixels are put in at the step's noise level. So that the rest comes to fit them, sampling goes
back to a noisier level and down again, several times over.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from diffusion_core.samplers.loop import Trajectory
from diffusion_core.samplers.protocols import DenoiserLike, Randn, Sampler, ScheduleLike


def inpaint_loop(
    schedule: ScheduleLike,
    denoiser: DenoiserLike,
    sampler: Sampler,
    x_t: Tensor,
    known: Tensor,
    mask: Tensor,
    *,
    jump_length: int = 10,
    resamplings: int = 10,
    classes: Tensor | None = None,
    randn: Randn = torch.randn_like,
) -> Iterator[Tensor]:
    """Yield x after each step and each return, the image with the known pixels in it last.

    Args:
        schedule: of the noise.
        denoiser: gives x0-hat; guided where it is a `GuidedDenoiser`.
        sampler: whose steps stand by themselves (ddpm, ddim, heun).
        x_t: standard normal noise, (B, C, H, W).
        known: images in [-1, 1], (B, C, H, W), of which only the known pixels are used.
        mask: bool, True where a pixel is known; broadcasts against `known`.
        jump_length: steps that a return goes back; at least 1, and less than all.
        resamplings: how often each stretch of that length is sampled; 1 never goes back.
        classes: labels, (B,), for a class-conditional network.
        randn: source of all noise.

    Raises:
        ValueError: the sampler needs the step before, or a number is out of its range.
    """
    if sampler.multistep:
        raise ValueError(f"sampler is {sampler.kind}, whose steps need the one before: take ddpm, ddim or heun")
    for name, value in (("jump_length", jump_length), ("resamplings", resamplings)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    transitions = sampler.transitions(schedule)
    if resamplings > 1 and jump_length >= len(transitions):
        raise ValueError(
            f"jump_length is {jump_length}; in {len(transitions)} steps it must be at most {len(transitions) - 1}, or"
            " resamplings 1"
        )
    denoise = Trajectory(denoiser, classes)
    times = [transitions[0][0], *(t_next for _, t_next in transitions)]
    for position, after in pairwise(positions(len(transitions), jump_length, resamplings)):
        t, t_next = times[position], times[after]
        alpha_bar_next = schedule.alpha_bar(t_next)
        if after < position:
            kept = alpha_bar_next / schedule.alpha_bar(t)
            x_t = math.sqrt(kept) * x_t + math.sqrt(1.0 - kept) * randn(x_t)
        else:
            x_t = sampler.step(schedule, denoise, x_t, t, t_next, randn)
            level = math.sqrt(alpha_bar_next) * known
            if t_next >= 0:
                level = level + math.sqrt(1.0 - alpha_bar_next) * randn(x_t)
            x_t = torch.where(mask, level, x_t)
        yield x_t


def positions(steps: int, jump_length: int, resamplings: int) -> list[int]:
    """Return the positions visited, from 0, the noise, to `steps`, the image, as the authors' schedule has them.

    Every `jump_length` positions, counted from the one before the image, sampling goes back by that much,
    `resamplings` - 1 times.
    """
    returns = dict.fromkeys(range(1, steps - jump_length + 1, jump_length), resamplings - 1)
    left, visited = steps, [0]
    while left > 0:
        left -= 1
        visited.append(steps - left)
        if returns.get(left, 0) > 0:
            returns[left] -= 1
            left += jump_length
            visited.append(steps - left)
    return visited
