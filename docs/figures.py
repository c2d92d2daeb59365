"""Draw the figures of docs/diffusion.md: python docs/figures.py, from the project's folder.

Those with digits in them are drawn by the model that `make demo` leaves in models/; the others follow from the
formulas, or from what benchmarks/sampling_choices.py measured.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from diffusion_core import DDIM, GaussianDiffusion, Guidance, ImageNoise, Unet
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.generation import to_uint8
from diffusion_core.lineage.saved_model import TrainedModel, load_model
from diffusion_core.pictures import grid, save
from diffusion_core.process.objectives import OBJECTIVES
from diffusion_core.process.weightings import P2, SNR, MinSNR, Uniform
from diffusion_core.samplers.spacing import Spacing, spaced_transitions
from diffusion_core.stages.paths import MODELS, PREPARED

IMAGES = Path("docs/images")
SCHEDULES = ("linear", "cosine", "sigmoid")
SPACINGS: tuple[Spacing, ...] = ("linspace", "leading", "trailing", "quadratic")


def process(schedule: str, timesteps: int = 1000, zero_terminal_snr: bool = False) -> GaussianDiffusion:
    """Return a process for its tables."""
    network = Unet(4, dim_mults=(1,), channels=1)
    return GaussianDiffusion(
        network,
        image_size=8,
        timesteps=timesteps,
        beta_schedule=schedule,
        zero_terminal_snr=zero_terminal_snr,
        weighting="uniform",
    ).double()


def schedules(left: Axes, right: Axes) -> None:
    """Draw how much of the image is left, and the signal-to-noise ratio."""
    for schedule in SCHEDULES:
        diffusion = process(schedule)
        left.plot(diffusion.sqrt_alphas_cumprod, label=schedule)
        right.semilogy(diffusion.snr, label=schedule)
    rescaled = process("linear", zero_terminal_snr=True)
    left.plot(rescaled.sqrt_alphas_cumprod, "k:", label="linear, zero_terminal_snr")
    right.semilogy(rescaled.snr[:-1], "k:")
    left.set(xlabel="t", ylabel="sqrt(abar), share of the image")
    right.set(xlabel="t", ylabel="SNR")
    left.legend()


def objectives(left: Axes, right: Axes) -> None:
    """Draw what an error of the output does to x0-hat, and what the weightings make of it."""
    snr = process("cosine").snr
    for name, objective in OBJECTIVES.items():
        left.semilogy(objective.error_ratio(snr).rsqrt(), label=name)
    left.set(xlabel="t", ylabel="error of x0-hat for an output off by 1", ylim=(5e-3, 2e2))
    left.legend()
    ratio = OBJECTIVES["pred_v"].error_ratio(snr)
    for weighting in (Uniform(), SNR(), MinSNR(), P2()):
        # In units of x0's error, so that the objective drops out.
        right.loglog(snr, weighting(snr, ratio) * ratio, label=weighting.kind)
    right.set(xlabel="SNR", ylabel="weight of x0's error, with pred_v", ylim=(1e-4, 1e4))
    right.legend()


def spacings(left: Axes, right: Axes) -> None:
    """Draw which timesteps ten steps visit, and at which noise levels these lie."""
    diffusion = process("cosine")
    for row, spacing in enumerate(SPACINGS):
        times = [int(t) for t, _ in spaced_transitions("ddim", 10, spacing, 1000)]
        left.plot(times, [row] * len(times), "o")
        sigma = ((1 - diffusion.alphas_cumprod) / diffusion.alphas_cumprod).sqrt()[times]
        right.semilogx(sigma, [row] * len(times), "o")
    for axes in (left, right):
        axes.set_yticks(range(len(SPACINGS)), SPACINGS)
    left.set(xlabel="t, on the cosine schedule")
    right.set(xlabel="noise level sigma")


def few_steps(left: Axes, right: Axes) -> None:
    """Draw what benchmarks/sampling_choices.py measured."""
    content = json.loads(Path("benchmarks/sampling_choices.json").read_text(encoding="utf-8"))
    names = list(dict.fromkeys(run["sampler"] for run in content["runs"]))
    for name in names:
        runs = [run for run in content["runs"] if run["sampler"] == name]
        axes = left if name.startswith("DDIM, ") and "eta" not in name else right
        axes.loglog([run["passes"] for run in runs], [run["figures"]["frechet"] for run in runs], "o-", label=name)
    baseline = [run for run in content["runs"] if run["sampler"] == "DDIM, linspace"]
    right.loglog(
        [run["passes"] for run in baseline],
        [run["figures"]["frechet"] for run in baseline],
        "k:",
        label="DDIM, linspace",
    )
    for axes in (left, right):
        axes.set(xlabel="passes through the network", ylabel="domain Fréchet distance", ylim=(1.3, 45))
        axes.set_xticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
        axes.set_yticks([1.5, 2, 3, 5, 10, 20, 40], ["1.5", "2", "3", "5", "10", "20", "40"])
        axes.minorticks_off()
        axes.legend(fontsize="small")


def digits(dataset: ImageDataset, labels: list[int]) -> Tensor:
    """Return the first training image of each label, float (N, C, H, W) in [0, 1]."""
    assert dataset.labels is not None
    rows = [int(np.flatnonzero(dataset.labels == label)[0]) for label in labels]
    return torch.from_numpy(dataset.images(np.array(rows))).permute(0, 3, 1, 2).float() / 255


def noising(dataset: ImageDataset) -> Tensor:
    """Return a row a schedule: one digit on its way into noise."""
    rows = []
    for schedule in SCHEDULES:
        diffusion = process(schedule).float()
        times = torch.tensor([0, 100, 200, 300, 400, 500, 600, 700, 800, 900, 999])
        x0 = digits(dataset, [3]).expand(len(times), -1, -1, -1) * 2 - 1
        noise = torch.randn(x0.shape[1:], generator=torch.Generator().manual_seed(0)).expand_as(x0)
        rows.append((diffusion.q_sample(x0, times, noise) + 1) / 2)
    return torch.stack(rows)


def guided(model: TrainedModel) -> Tensor:
    """Return a row a guidance: every digit, from the same noise."""
    labels = torch.arange(10)
    choices = [Guidance(scale=scale) for scale in (0.0, 1.0, 2.0, 5.0)]
    choices += [Guidance(scale=5.0, rescale=0.7), Guidance(scale=5.0, interval=(0.3, 5.0))]
    return torch.stack(
        [
            model.diffusion.sample(
                10, sampler=DDIM(steps=50), randn=ImageNoise(1, range(10)), classes=labels, guidance=each
            )
            for each in choices
        ]
    )


def painted(model: TrainedModel, dataset: ImageDataset) -> Tensor:
    """Return four rows: digits, what is known of them, and their lower halves painted without and with resampling."""
    labels = list(range(10))
    images = digits(dataset, labels)
    mask = torch.zeros(1, 1, 8, 8)
    mask[:, :, :4] = 1
    rows = [images, images * mask]
    for resamplings in (1, 10):
        rows.append(
            model.diffusion.inpaint(
                images,
                mask,
                sampler=DDIM(steps=50, eta=1.0),
                resamplings=resamplings,
                jump_length=5,
                randn=ImageNoise(0, range(10)),
                classes=torch.tensor(labels),
            )
        )
    return torch.stack(rows)


def between(model: TrainedModel, dataset: ImageDataset) -> Tensor:
    """Return a row a t: from one digit to another."""
    one, other = digits(dataset, [0]), digits(dataset, [6])
    shares = torch.linspace(0, 1, 11).tolist()
    rows = []
    for t in (100, 250, 400):
        row = []
        for share in shares:
            torch.manual_seed(0)
            row.append(model.diffusion.interpolate(one * 2 - 1, other * 2 - 1, t=t, lam=share)[0])
        rows.append((torch.stack(row) + 1) / 2)
    return torch.stack(rows)


def main() -> None:
    """Draw all of them into docs/images."""
    for draw in (schedules, objectives, spacings, few_steps):
        figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
        draw(*axes)
        figure.savefig(IMAGES / f"{draw.__name__}.png", dpi=110)
    model, dataset = load_model(MODELS), ImageDataset.open(PREPARED, "train")
    pictures = {
        "noising": noising(dataset),
        "guided": guided(model),
        "painted": painted(model, dataset),
        "between": between(model, dataset),
    }
    for name, rows in pictures.items():
        save(grid(to_uint8(rows.flatten(0, 1)), columns=rows.shape[1]), IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
