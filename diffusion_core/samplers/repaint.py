"""Inpainting by RePaint, Lugmayr et al. 2022 (https://arxiv.org/abs/2201.09865), algorithm 1, by a one-step sampler.

After each step, the known pixels at that step's noise level replace the sampled ones. Jumping back to a higher noise
level and sampling again, several times, makes the unknown pixels consistent with the known ones.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from diffusion_core.samplers.loop import Trajectory
from diffusion_core.samplers.protocols import DenoiserLike, Randn, Sampler


def inpaint_loop(
    denoiser: DenoiserLike,
    sampler: Sampler,
    x_t: Tensor,
    known: Tensor,
    mask: Tensor,
    *,
    randn: Randn = torch.randn_like,
    jump_length: int = 10,
    resamplings: int = 10,
    classes: Tensor | None = None,
) -> Iterator[Tensor]:
    """Yield x after each step and each jump back; the last is the image with its known pixels.

    Args:
        denoiser: computes the predictions; a `GuidedDenoiser` for guidance.
        sampler: a sampler that is not multistep.
        x_t: standard normal noise, (B, C, H, W).
        known: images in [-1, 1], (B, C, H, W); only the known pixels are used.
        mask: bool, True for a known pixel; broadcasts to the shape of `known`.
        jump_length: steps of a jump back; at least 1 and less than the number of steps.
        resamplings: how often each segment of `jump_length` steps is sampled; 1 for no jumps.
        classes: labels, int64 (B,), for a class-conditional network.
        randn: source of all noise.

    Raises:
        ValueError: the sampler is a multistep one, or a number is out of its range.
    """
    if sampler.multistep:
        raise ValueError(f"sampler is {sampler.kind}, whose steps need the one before: take another, for example ddim")
    for name, value in (("jump_length", jump_length), ("resamplings", resamplings)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    transitions = sampler.transitions(denoiser.schedule)
    if resamplings > 1 and jump_length >= len(transitions):
        raise ValueError(
            f"jump_length is {jump_length}; in {len(transitions)} steps it must be at most {len(transitions) - 1}, or"
            " resamplings 1"
        )
    denoise = Trajectory(denoiser, classes)
    times = [transitions[0][0], *(t_next for _, t_next in transitions)]
    for position, after in pairwise(positions(len(transitions), jump_length, resamplings)):
        t, t_next = times[position], times[after]
        alpha_bar_next = denoiser.schedule.alpha_bar(t_next)
        if after < position:
            kept = alpha_bar_next / denoiser.schedule.alpha_bar(t)
            x_t = math.sqrt(kept) * x_t + math.sqrt(1.0 - kept) * randn(x_t)
        else:
            x_t = sampler.step(denoiser.schedule, denoise, x_t, t, t_next, randn)
            level = math.sqrt(alpha_bar_next) * known
            if t_next >= 0:
                level = level + math.sqrt(1.0 - alpha_bar_next) * randn(x_t)
            x_t = torch.where(mask, level, x_t)
        yield x_t


def positions(steps: int, jump_length: int, resamplings: int) -> list[int]:
    """Return the visited positions, from 0, the noise, to `steps`, the image, as in the authors' code.

    Every `jump_length` positions, counted back from the one before the image, sampling jumps back by `jump_length`
    positions, `resamplings` - 1 times.
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
