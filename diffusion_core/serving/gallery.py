"""The versions of a registered model for people to look at: what a page in a browser asks for."""

import base64
import threading
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain, zip_longest
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field

from diffusion_core.config.environment import Environment
from diffusion_core.generation import to_uint8
from diffusion_core.pictures import grid, png
from diffusion_core.process.sampling import sample_steps
from diffusion_core.registry.served import Served, aliases_by_version, load_served
from diffusion_core.runtime.device import choose_device, choose_dtype
from diffusion_core.samplers.noise import ImageNoise
from diffusion_core.serving.request import ImageRequest, Job, card, job

# Pictures of a denoising, at most.
MOST_FRAMES = 30
# Versions that stay in memory.
MOST_VERSIONS = 8
# Images of a grid, at most.
MOST_IMAGES = 64

Frame = dict[str, str | int]


class Look(BaseModel):
    """What the page asks for: images of one version, or of two with the same seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    versions: Annotated[list[Annotated[str, Field(pattern=r"^\d+$")]], Field(min_length=1, max_length=2)]
    images: ImageRequest


class Gallery:
    """The versions of one registered model; each is loaded when it is first looked at.

    Args:
        environment: the environment, with the store and the device.
        name: the registered model.
    """

    def __init__(self, environment: Environment, name: str) -> None:
        self._environment = environment
        self._name = name
        self._device = choose_device(environment.device)
        self._dtype = choose_dtype(environment.precision, self._device).dtype
        self._loading = threading.Lock()
        # Two steps at once would each take more than twice the time. Never held across a yield: a browser that leaves
        # abandons a generator where it is.
        self._stepping = threading.Lock()
        self._loaded = lru_cache(MOST_VERSIONS)(lambda number: load_served(environment, name, number, self._device))

    def versions(self) -> list[dict[str, object]]:
        """Return number and aliases of each version, newest first.

        Raises:
            Unavailable: the tracking store does not answer.
        """
        found = aliases_by_version(self._environment, self._name)
        return [{"version": version, "aliases": aliases} for version, aliases in found.items()]

    def card(self, number: str) -> dict[str, object]:
        """Return what may be asked of a version.

        Raises:
            UserError: there is no such version, or it cannot be loaded.
        """
        return card(self._version(number), MOST_IMAGES, self._environment.serve_steps)

    def frames(self, look: Look) -> Iterator[Frame]:
        """Return the grids of a denoising, step by step; where there are two versions, those of both in turn.

        Raises:
            UserError: a version cannot be sampled like this, or there are too many images.
        """
        served = [self._version(number) for number in look.versions]
        limits = {"most_images": MOST_IMAGES, "most_steps": self._environment.serve_steps}
        jobs = [job(look.images, each.model, each.judged_by, **limits) for each in served]
        denoisings = [self._denoising(each, one) for each, one in zip(served, jobs, strict=True)]
        return (frame for frame in chain.from_iterable(zip_longest(*denoisings)) if frame is not None)

    def _version(self, number: str) -> Served:
        with self._loading:
            return self._loaded(number)

    def _denoising(self, served: Served, one: Job) -> Iterator[Frame]:
        diffusion, sampling = served.model.diffusion, one.sampling
        count = len(one.keys)
        steps = sample_steps(
            diffusion,
            count,
            sampler=sampling.sampler,
            randn=ImageNoise.of(one.keys),
            classes=None if one.labels is None else torch.tensor(one.labels),
            guidance=sampling.guidance,
        )
        last = len(sampling.sampler.transitions(diffusion.schedule))
        for step in range(last + 1):
            # Entered for each step, because a server may take each from another thread.
            with (
                self._stepping,
                torch.inference_mode(),
                torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32),
            ):
                images = next(steps)
            if step == last or step % -(-last // MOST_FRAMES) == 0:
                sheet = png(grid(to_uint8(images), columns=round(count**0.5)))
                yield {"version": served.version, "step": step, "steps": last, "png": base64.b64encode(sheet).decode()}
