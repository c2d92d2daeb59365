"""Beta schedules, in float64: the variance of the noise that each timestep adds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from diffusion_core.choices import Choice, choose

# Keeps abar_T above 0, so that SNR and the posterior stay finite (Nichol & Dhariwal 2021, section 3.2).
MAX_BETA = 0.999


class BetaSchedule(Protocol):
    """Computes the betas for T timesteps."""

    @property
    def kind(self) -> str:
        """Its name in params.yaml."""
        ...

    def betas(self, timesteps: int) -> Tensor:
        """Return b_0 .. b_{T-1}: float64, shape (timesteps,), each in (0, 1).

        Raises:
            ValueError: the schedule does not exist for that number of timesteps.
        """
        ...


@dataclass(frozen=True)
class Linear(Choice):
    """The schedule of Ho et al. 2020 (https://arxiv.org/abs/2006.11239), scaled so that abar_T hardly depends on T.

    b rises linearly from 1e-4 to 0.02 for T = 1000; other T scale both ends by 1000 / T.
    """

    kind: Literal["linear"] = "linear"

    def betas(self, timesteps: int) -> Tensor:
        """Return linspace(1e-4, 0.02, T) * 1000 / T.

        Raises:
            ValueError: T is at most 20, so that the last beta reaches 1.
        """
        scale = 1000 / timesteps
        last = scale * 0.02
        if last >= 1.0:
            raise ValueError(
                f"timesteps is {timesteps}; the linear schedule needs at least 21, because its last beta"
                f" {last:.3g} is not below 1: raise timesteps, or take the cosine or sigmoid schedule"
            )
        return torch.linspace(scale * 1e-4, last, timesteps, dtype=torch.float64)


@dataclass(frozen=True)
class Cosine(Choice):
    """The schedule of Nichol & Dhariwal 2021 (https://arxiv.org/abs/2102.09672), equation 17.

        abar(u) = cos^2((u/T + s) / (1 + s) * pi/2)

    Attributes:
        s: offset that keeps the first betas above 0; in (0, 1).
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
    """The schedule of Jabri et al. 2022 (https://arxiv.org/abs/2212.11972), appendix B; for images above 64x64.

        abar(u) = (g(end) - g(start + u/T (end - start))) / (g(end) - g(start)),     g(x) = sigmoid(x / tau)

    Attributes:
        start: argument of the sigmoid at the clean image.
        end: argument of the sigmoid at the noise; greater than `start`.
        tau: temperature, greater than 0; a smaller one makes the middle steeper.
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
        # In float32, as in lucidrains/denoising-diffusion-pytorch: the last abar, 3e-7, is the difference of two nearly
        # equal numbers, and in float64 it would differ by a relative 3e-5.
        first, last = torch.sigmoid(
            torch.tensor([self.start / self.tau, self.end / self.tau], dtype=torch.float32)
        ).double()
        here = torch.sigmoid((u * (self.end - self.start) + self.start) / self.tau)
        return betas_from_alpha_bar((last - here) / (last - first))


@dataclass(frozen=True)
class Table(Choice):
    """Betas that are given one by one, for example those of an imported checkpoint.

    Attributes:
        values: b_0 .. b_{T-1}.
    """

    values: tuple[float, ...]
    kind: Literal["table"] = "table"

    def __post_init__(self) -> None:
        # JSON has lists.
        object.__setattr__(self, "values", tuple(self.values))

    def betas(self, timesteps: int) -> Tensor:
        """Return the values.

        Raises:
            ValueError: there are not T of them.
        """
        if len(self.values) != timesteps:
            raise ValueError(f"timesteps is {timesteps}; the table of betas has {len(self.values)} values")
        return torch.tensor(self.values, dtype=torch.float64)


ScheduleChoice = Linear | Cosine | Sigmoid | Table


def chosen_schedule(schedule: str | BetaSchedule, options: Mapping[str, Any] | None) -> BetaSchedule:
    """Return the schedule; build it if it is given by its name and options.

    Raises:
        ValueError: the name or an option is unknown, or there are options and a schedule object.
    """
    if isinstance(schedule, str):
        named: BetaSchedule = choose(ScheduleChoice, schedule, "beta_schedule", **(options or {}))
        return named
    if options:
        raise ValueError(f"schedule_fn_kwargs is {options}; it goes with a beta_schedule given by name")
    return schedule


def betas_from_alpha_bar(alpha_bar: Tensor) -> Tensor:
    """Return the betas whose cumulative product of 1 - b is `alpha_bar`, clipped to [0, 0.999]; float64, (T,).

    Args:
        alpha_bar: float64, (T + 1,); the first value is that of the clean image.
    """
    alpha_bar = alpha_bar / alpha_bar[0]
    return torch.clip(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.0, MAX_BETA)


def rescale_to_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Return betas with the same first alpha_bar and a last alpha_bar of exactly 0; float64, (T,).

    The usual schedules leave some signal in x_T, mostly the mean brightness, which the noise that sampling starts from
    does not have. Lin et al. 2023 (https://arxiv.org/abs/2305.08891), algorithm 1, rescale them:

        s_t = (sqrt(abar_t) - sqrt(abar_T)) sqrt(abar_0) / (sqrt(abar_0) - sqrt(abar_T)),   abar_t <- s_t^2

    Raises:
        ValueError: there are fewer than 2 timesteps.
    """
    if len(betas) < 2:
        raise ValueError(f"zero_terminal_snr needs at least 2 timesteps; timesteps is {len(betas)}")
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    first, last = root[0], root[-1]
    alpha_bar = ((root - last) * first / (first - last)).square()
    return 1.0 - torch.cat((alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]))
