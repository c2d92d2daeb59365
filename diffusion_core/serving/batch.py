"""Sample the images of several requests together."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_core.generation import to_uint8
from diffusion_core.lineage.saved_model import TrainedModel
from diffusion_core.samplers.noise import ImageNoise
from diffusion_core.serving import measures
from diffusion_core.serving.request import Job


def sample_jobs(
    model: TrainedModel, jobs: Sequence[Job], batch_size: int, dtype: torch.dtype
) -> list[NDArray[np.uint8]]:
    """Return the images of each job, uint8 (n, H, W, C).

    Jobs with one sampling share batches. Image i of a seed is the same in every batch, but for rounding.

    Args:
        model: the model.
        jobs: what is asked for.
        batch_size: the most images of a batch.
        dtype: dtype of the network's matrix products.
    """
    diffusion = model.diffusion
    images = [np.empty((len(job.keys), *diffusion.image_size, diffusion.channels), np.uint8) for job in jobs]
    for sampling in dict.fromkeys(job.sampling for job in jobs):
        places = [
            (number, place)
            for number, job in enumerate(jobs)
            if job.sampling == sampling
            for place in range(len(job.keys))
        ]
        for begin in range(0, len(places), batch_size):
            here = places[begin : begin + batch_size]
            labels = [label for number, place in here for label in (jobs[number].labels or ())[place : place + 1]]
            measures.images.inc(len(here))
            measures.batch_images.observe(len(here))
            autocast = torch.autocast(diffusion.device.type, dtype, enabled=dtype != torch.float32)
            with measures.batch_seconds.time(), autocast:
                made = diffusion.sample(
                    len(here),
                    sampler=sampling.sampler,
                    randn=ImageNoise.of(jobs[number].keys[place] for number, place in here),
                    classes=torch.tensor(labels) if labels else None,
                    guidance=sampling.guidance,
                )
                pixels = to_uint8(made)
            for (number, place), image in zip(here, pixels, strict=True):
                images[number][place] = image
    return images
