"""Beta schedules: how much noise each timestep adds, as a function of the number of timesteps; in float64."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from diffusion_core.choices import Choice, choose

# Keeps abar_T above zero, so that SNR and the posterior stay finite (Nichol & Dhariwal 2021, section 3.2).
MAX_BETA = 0.999


class BetaSchedule(Protocol):
    """Gives the noise that is added at each timestep."""

    @property
    def kind(self) -> str:
        """The name it is chosen by."""
        ...

    def betas(self, timesteps: int) -> Tensor:
        """Return b_0 .. b_{T-1}: float64, shape (timesteps,), each in (0, 1).

        Raises:
            ValueError: no such schedule exists for that number of timesteps.
        """
        ...


@dataclass(frozen=True)
class Linear(Choice):
    """The schedule of Ho et al. 2020 (https://arxiv.org/abs/2006.11239), scaled so that it does not depend on T.

    b rises evenly from 1e-4 to 0.02 at T = 1000; other T scale both ends by 1000 / T.
    """

    kind: Literal["linear"] = "linear"

    def betas(self, timesteps: int) -> Tensor:
        """Return linspace(1e-4, 0.02, T) * 1000 / T.

        Raises:
            ValueError: T is so small that the last beta reaches 1.
        """
        scale = 1000 / timesteps
        last = scale * 0.02
        if last >= 1.0:
            raise ValueError(
                f"timesteps is {timesteps}; the linear schedule needs at least 21, because its last beta would be"
                f" {last:.3g} and must stay below 1: raise timesteps or take the cosine or sigmoid schedule"
            )
        return torch.linspace(scale * 1e-4, last, timesteps, dtype=torch.float64)


@dataclass(frozen=True)
class Cosine(Choice):
    """The schedule of Nichol & Dhariwal 2021 (https://arxiv.org/abs/2102.09672), equation 17.

        abar(u) = cos^2((u/T + s) / (1 + s) * pi/2)

    Attributes:
        s: offset that keeps the first betas from vanishing; in (0, 1).
    """

    kind: Literal["cosine"] = "cosine"
    s: float = 0.008

    def __post_init__(self) -> None:
        if not 0.0 < self.s < 1.0:
            raise ValueError(f"s is {self.s}; the cosine schedule's offset must lie between 0 and 1")

    def betas(self, timesteps: int) -> Tensor:
        """Return the T betas, clipped to at most 0.999."""
        u = torch.linspace(0.0, 1.0, timesteps + 1, dtype=torch.float64)
        return betas_from_alpha_bar(torch.cos((u + self.s) / (1.0 + self.s) * math.pi / 2) ** 2)


@dataclass(frozen=True)
class Sigmoid(Choice):
    """The schedule of Jabri et al. 2022 (https://arxiv.org/abs/2212.11972), appendix B; better for images past 64x64.

        abar(u) = (g(end) - g(start + u/T (end - start))) / (g(end) - g(start)),     g(x) = sigmoid(x / tau)

    Attributes:
        start: argument of the sigmoid at the clean image.
        end: argument at the noise; greater than `start`.
        tau: temperature; greater than 0, and a smaller one makes the middle steeper.
    """

    kind: Literal["sigmoid"] = "sigmoid"
    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"end is {self.end}; the sigmoid schedule's end must be greater than start, {self.start}")
        if self.tau <= 0.0:
            raise ValueError(f"tau is {self.tau}; the sigmoid schedule's temperature must be greater than 0")

    def betas(self, timesteps: int) -> Tensor:
        """Return the T betas, clipped to at most 0.999."""
        u = torch.linspace(0.0, 1.0, timesteps + 1, dtype=torch.float64)
        # Rounded as lucidrains/denoising-diffusion-pytorch rounds them, because the last abar, 3e-7, is the difference
        # of two nearly equal numbers and differs by 3e-5 of itself otherwise.
        first, last = torch.sigmoid(
            torch.tensor([self.start / self.tau, self.end / self.tau], dtype=torch.float32)
        ).double()
        here = torch.sigmoid((u * (self.end - self.start) + self.start) / self.tau)
        return betas_from_alpha_bar((last - here) / (last - first))


ScheduleChoice = Linear | Cosine | Sigmoid


def chosen_schedule(schedule: str | BetaSchedule, options: Mapping[str, Any] | None) -> BetaSchedule:
    """Return a schedule that may be given by its name and options.

    Raises:
        ValueError: there is none of that name, it has no such option, or options go with a schedule that was made.
    """
    if isinstance(schedule, str):
        named: BetaSchedule = choose(ScheduleChoice, schedule, "beta_schedule", **(options or {}))
        return named
    if options:
        raise ValueError(f"schedule_fn_kwargs is {options}; it goes with a beta_schedule given by name")
    return schedule


def betas_from_alpha_bar(alpha_bar: Tensor) -> Tensor:
    """Return the betas whose running product of 1 - b is `alpha_bar`, clipped to [0, 0.999].

    Args:
        alpha_bar: float64, shape (T + 1,); the values at the T + 1 borders of the timesteps, first the clean image's.
    """
    alpha_bar = alpha_bar / alpha_bar[0]
    return torch.clip(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.0, MAX_BETA)


def rescale_to_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Return betas whose last alpha_bar is exactly 0 and whose first is as it was; float64, (T,).

    The usual schedules leave a trace of the image in x_T, mostly its mean brightness, which sampling never gives.
    Lin et al. 2023 (https://arxiv.org/abs/2305.08891), algorithm 1, rescale them:

        s_t = (sqrt(abar_t) - sqrt(abar_T)) sqrt(abar_0) / (sqrt(abar_0) - sqrt(abar_T)),   abar_t <- s_t^2

    Raises:
        ValueError: there is one timestep alone, which cannot be both.
    """
    if len(betas) < 2:
        raise ValueError(f"zero_terminal_snr needs at least 2 timesteps; timesteps is {len(betas)}")
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0], root[-1]
    alpha_bar = ((root - last) * first / (first - last)).square()
    return 1.0 - torch.cat((alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]))
