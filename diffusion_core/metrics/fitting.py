"""The training loop that both ways of learning features share."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from diffusion_core.settings import ReferenceSettings

Indices = NDArray[np.int64]


def fit(
    module: nn.Module, loss_of: Callable[[Indices], Tensor], count: int, settings: ReferenceSettings, title: str
) -> float:
    """Minimise `loss_of(indices)` over a dataset of `count` images with AdamW and the one-cycle schedule.

    `settings.images` are seen in all: as many seeded passes, and the part of one, as that takes.

    Returns:
        The mean loss of the last tenth of the training.
    """
    batch_size = min(settings.batch_size, count)
    steps = max(1, settings.images // batch_size)
    optimizer = torch.optim.AdamW(module.parameters(), settings.learning_rate)
    # Two steps at least: the schedule divides by the length of its two phases.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=max(steps, 2))
    losses = []
    module.train()
    batches = _batches(count, batch_size)
    # disable=None: a bar in a terminal, nothing elsewhere.
    for _ in tqdm(range(steps), desc=title, unit="step", disable=None):
        loss = loss_of(next(batches))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    module.eval()
    return float(torch.stack(losses[-max(1, steps // 10) :]).mean())


def _batches(count: int, batch_size: int) -> Iterator[Indices]:
    while True:
        order = torch.randperm(count).numpy()
        # Batches are whole: batch normalisation cannot take a rest of one image.
        for start in range(0, count - batch_size + 1, batch_size):
            yield order[start : start + batch_size]
