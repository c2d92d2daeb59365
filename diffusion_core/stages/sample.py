"""Sample images from the trained model: models/ to samples/."""

import gc
import logging
from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion_core.arrays import save_array
from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import SampleSettings
from diffusion_core.counts import count_of
from diffusion_core.errors import UserError
from diffusion_core.files import replaced
from diffusion_core.generation import even_size, generate, to_uint8
from diffusion_core.lineage.model_files import model_digest
from diffusion_core.lineage.samples import SamplesOrigin, sampling_key
from diffusion_core.lineage.saved_model import TrainedModel, load_model
from diffusion_core.pictures import grid, save
from diffusion_core.runtime.allocator import keep_freed_memory
from diffusion_core.runtime.compilation import compile_for_sampling, compiler_problem
from diffusion_core.runtime.compile_cache import use_compile_cache
from diffusion_core.runtime.device import choose_compiled, choose_device, choose_dtype
from diffusion_core.runtime.distributed import Ranks
from diffusion_core.samplers.noise import ImageNoise
from diffusion_core.self_check.sampling import check_sampling
from diffusion_core.stages.cost import Cost, record_cost
from diffusion_core.stages.paths import MODELS, SAMPLES, SAMPLES_ORIGIN

logger = logging.getLogger(__name__)

GRID_IMAGES = 100
DENOISING_ROWS = 8
DENOISING_COLUMNS = 11


def run(
    sample: SampleSettings,
    environment: Environment,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> None:
    """Write samples.npy, labels.npy for a class-conditional model, grid.png, denoising.png and origin.json.

    Labels have the proportions of the training images, with which the samples are compared. The grid has the first
    images, sorted by label.

    Raises:
        UserError: the model is missing or damaged, or cannot be sampled with the section `sample`.
    """
    device = choose_device(environment.device)
    cost = Cost(device, ranks.count)
    dtype = choose_dtype(environment.precision, device).dtype
    keep_freed_memory()
    model = load_model(MODELS, device)
    try:
        images, labels = sample_model(_fast(model, sample, environment, ranks), sample, environment, ranks)
    except ValueError as error:
        raise UserError(
            f"{MODELS} cannot be sampled as params.yaml says ({error}): change the section sample, or train again with"
            " `dvc repro train`"
        ) from None
    if not ranks.is_main:
        return
    with replaced(SAMPLES) as folder:
        save_array(folder / "samples.npy", images)
        shown = images[:GRID_IMAGES]
        if labels is not None:
            save_array(folder / "labels.npy", labels)
            shown = shown[labels[:GRID_IMAGES].argsort(kind="stable")]
        save(grid(shown, columns=10), folder / "grid.png")
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            trajectories = _trajectories(model, sample, min(DENOISING_ROWS, sample.count))
        save(
            grid(trajectories.reshape(-1, *trajectories.shape[2:]), columns=trajectories.shape[1]),
            folder / "denoising.png",
        )
        origin = SamplesOrigin(model_digest=model_digest(MODELS), sampling_key=sampling_key(sample), sample=sample)
        origin.write(folder / SAMPLES_ORIGIN.name)
    record_cost("sample", SAMPLES / "samples.npy", cost)
    print(f"sample: {count_of(len(images), 'image')} by {sample.sampler.kind} in {SAMPLES}")


def _fast(model: TrainedModel, sample: SampleSettings, environment: Environment, ranks: Ranks) -> TrainedModel:
    """Return the model compiled for sampling if that is selected, possible and passes the self-check."""
    device = model.diffusion.device
    if not choose_compiled(environment.compile, device):
        return model
    if (problem := compiler_problem(device)) is not None:
        logger.warning("the network is not compiled (%s): sampling is slower", problem)
        return model
    size = even_size(len(ranks.share(sample.count)), environment.sample_batch_size)
    if size == 0:
        return model
    use_compile_cache(environment.compile_cache, device)
    fast = replace(model, diffusion=deepcopy(model.diffusion))
    compile_for_sampling(fast.diffusion.model)
    dtype = choose_dtype(environment.precision, device).dtype
    for predictions in sample.guidance.predictions:
        verdict = check_sampling(model.diffusion, fast.diffusion, dtype, predictions * size)
        if not verdict.passed:
            logger.warning("self-check: %s; sampling continues without compiled kernels", verdict)
            # Free the memory now; the network and its CUDA graphs refer to each other.
            del fast
            gc.collect()
            return model
        print(f"sample: self-check: {verdict}", flush=True)
    return fast


def sample_model(
    model: TrainedModel,
    sample: SampleSettings,
    environment: Environment,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """Return images, uint8 (N, H, W, C), and labels of `model` for the section `sample` of params.yaml.

    With several processes, the main rank returns all of them, the others their share.

    Raises:
        ValueError: the sampler has more steps than the model has timesteps, or there is guidance without classes.
    """
    return generate(
        model.diffusion,
        sample.count,
        labels=model.labels(sample.count),
        seed=sample.seed,
        sampler=sample.sampler,
        guidance=sample.guidance,
        batch_size=environment.sample_batch_size,
        dtype=choose_dtype(environment.precision, model.diffusion.device).dtype,
        ranks=ranks,
        task="sample",
    )


def _trajectories(model: TrainedModel, sample: SampleSettings, rows: int) -> NDArray[np.uint8]:
    """Return the sampling trajectories of the first images, uint8 (rows, columns, H, W, C)."""
    labels = model.labels(rows)
    trajectory = model.diffusion.sample(
        rows,
        return_all_timesteps=True,
        sampler=sample.sampler,
        randn=ImageNoise(sample.seed, range(rows)),
        classes=None if labels is None else torch.tensor(labels),
        guidance=sample.guidance,
    )
    shown = torch.linspace(0, trajectory.shape[1] - 1, min(DENOISING_COLUMNS, trajectory.shape[1])).round().long()
    return to_uint8(trajectory[:, shown])
