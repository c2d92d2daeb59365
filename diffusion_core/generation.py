"""Samples a set of images; image i depends only on (seed, i)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.progress import Progress
from diffusion_core.runtime.distributed import Ranks
from diffusion_core.samplers.guidance import Guidance
from diffusion_core.samplers.noise import ImageNoise
from diffusion_core.samplers.protocols import Sampler

# Makes the images of a batch, (B, C, H, W) in [0, 1], of a source of noise and labels, int64 (B,), or None.
Make = Callable[[ImageNoise, Tensor | None, range], Tensor]


def generate(
    diffusion: GaussianDiffusion,
    count: int,
    *,
    seed: int,
    sampler: Sampler,
    guidance: Guidance = Guidance(),  # noqa: B008 - frozen
    labels: Sequence[int] | None = None,
    batch_size: int = 100,
    dtype: torch.dtype = torch.float32,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    task: str | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """Return new images, uint8 (count, H, W, C), and their labels, int64 (count,), or None without classes.

    Args:
        diffusion: the trained process, in eval mode.
        count: number of images.
        seed: seed of the set; another batch size or a greater count gives the same first images.
        sampler: the sampler.
        guidance: classifier-free guidance; off by default.
        labels: one per image for a class-conditional network, else None.
        batch_size: see `make_all`.
        dtype: see `make_all`.
        ranks: see `make_all`.
        task: see `make_all`.

    Raises:
        ValueError: the labels do not fit the network or the count, or the sampler does not fit the process.
    """

    def make(randn: ImageNoise, classes: Tensor | None, indices: range) -> Tensor:
        return diffusion.sample(len(indices), sampler=sampler, randn=randn, classes=classes, guidance=guidance)

    return make_all(
        diffusion,
        make,
        count,
        seed=seed,
        labels=labels,
        batch_size=batch_size,
        dtype=dtype,
        ranks=ranks,
        task=task,
        times=[t for t, _ in sampler.transitions(diffusion.schedule)],
    )


def make_all(
    diffusion: GaussianDiffusion,
    make: Make,
    count: int,
    *,
    seed: int,
    labels: Sequence[int] | None = None,
    batch_size: int = 100,
    dtype: torch.dtype = torch.float32,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    task: str | None = None,
    times: Sequence[float] = (),
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """Return images, uint8 (count, H, W, C), that are made in batches, and their labels, int64 (count,), or None.

    Each of several processes makes its share. The main rank returns all images, the others return their share.

    Args:
        diffusion: the trained process, in eval mode.
        make: makes a batch; image i must depend on its own noise and label alone.
        count: number of images.
        seed: seed of the noise of all images.
        labels: one per image for a class-conditional network, else None.
        batch_size: images per batch; affects only memory and speed.
        dtype: dtype of the network's matrix products.
        ranks: the processes that share the work.
        task: name of the work, whose progress is shown; None shows none.
        times: the timesteps of a batch in order, for progress within it.

    Raises:
        ValueError: the labels do not fit the network or the count.
    """
    classes = _classes(diffusion, count, labels)
    share = ranks.share(count)
    size = even_size(len(share), batch_size)
    images = [np.empty((0, *diffusion.image_size, diffusion.channels), np.uint8)]
    is_shown = task is not None and ranks.is_main
    with (
        Progress(task or "", count, "images", is_shown) as progress,
        _within_batches(diffusion.model, progress, times, ranks.count) as begin,
    ):
        for start in range(0, len(share), size or 1):
            # All batches have the same size, because each size would be compiled separately. The last batch samples
            # some images again, with the same result.
            indices = share[-size:] if start + size > len(share) else share[start : start + size]
            here = None if classes is None else classes[indices.start : indices.stop]
            new = share[start : start + size]
            begin(start, len(new))
            with torch.autocast(diffusion.device.type, dtype, enabled=dtype != torch.float32):
                made = make(ImageNoise(seed, indices), here, indices)
            images.append(to_uint8(made[-len(new) :]))
            progress.update(min((start + len(new)) * ranks.count, count))
    own = np.concatenate(images)
    gathered = ranks.gather(torch.from_numpy(own), count)
    if gathered is None:
        return own, None if classes is None else classes[share.start : share.stop].numpy()
    return gathered.numpy(), None if classes is None else classes.numpy()


@contextmanager
def _within_batches(
    network: nn.Module, progress: Progress, times: Sequence[float], processes: int
) -> Iterator[Callable[[int, int], None]]:
    """Show progress in the block also within batches, which take minutes on some devices.

    Yields what to call before each batch, with the number of images before it and in it.
    """
    before = in_batch = 0

    def begin(start: int, size: int) -> None:
        nonlocal before, in_batch
        before, in_batch = start, size

    def show(_: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        # To read a timestep waits for the device.
        if progress.is_due:
            t = float(inputs[1][0])
            passed = sum(time > t for time in times) / max(len(times), 1)
            progress.update((before + passed * in_batch) * processes)

    hook = network.register_forward_pre_hook(show)
    try:
        yield begin
    finally:
        hook.remove()


def even_size(count: int, most: int) -> int:
    """Return the batch size for the fewest equal batches of at most `most` images that cover `count` images."""
    return -(-count // -(-count // most)) if count else 0


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Return images in [0, 1], (..., C, H, W), as uint8 (..., H, W, C)."""
    pixels: NDArray[np.uint8] = (images.clamp(0, 1) * 255).round().byte().movedim(-3, -1).cpu().numpy()
    return pixels


def _classes(diffusion: GaussianDiffusion, count: int, labels: Sequence[int] | None) -> Tensor | None:
    if diffusion.num_classes is None:
        if labels is not None:
            raise ValueError("labels are given, but the model is not class-conditional")
        return None
    if labels is None or len(labels) != count:
        raise ValueError(f"{len(labels or ())} labels are given for {count} images; give one an image")
    return torch.as_tensor(labels, dtype=torch.long)
