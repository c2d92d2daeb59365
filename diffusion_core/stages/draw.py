"""Sample images of any model: new ones, of an image, inside a mask, or a strip from one seed to another."""

import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffusion_core.arrays import save_array
from diffusion_core.choices import choose
from diffusion_core.config.environment import Environment
from diffusion_core.counts import count_of
from diffusion_core.data.decode import decode
from diffusion_core.data.decoding import Decoding
from diffusion_core.errors import UserError
from diffusion_core.files import replaced, replaced_file
from diffusion_core.generation import Make, make_all
from diffusion_core.lineage.saved_model import TrainedModel, load_model
from diffusion_core.pictures import grid, picture, png
from diffusion_core.runtime.device import choose_device, choose_dtype
from diffusion_core.samplers import SamplerChoice
from diffusion_core.samplers.guidance import Guidance
from diffusion_core.samplers.noise import ImageNoise
from diffusion_core.stages.memory import free_memory
from diffusion_core.stages.named import NamedModel, find_model

COLUMNS = 10
# Files that it writes, and suffixes of others that somebody may expect, and would get as a folder.
WRITTEN = (".png", ".npy")
OTHERS = {*Image.registered_extensions(), *WRITTEN, ".npz", ".zip", ".pt"}
# Of a mask, from 0 to 255: pixels that are lighter are sampled.
MIDDLE = 128
# Of RePaint, as in its paper, where the sampler has that many steps.
JUMP_LENGTH = 10


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        count: number of images, at least 1.
        class_name: the class of all images, or None for classes in the proportions of the training images.
        seed: image i depends on it and on i alone.
        sampler: the sampler.
        guidance: classifier-free guidance.
        image: a file whose image is noised and denoised again, or whose masked part is sampled; None for new images.
        strength: how much of the noise the image gets, in (0, 1].
        mask: a file that is white where the image is sampled, or None.
        to_seed: seed at the other end of a strip, or None.
    """

    count: int
    class_name: str | None
    seed: int
    sampler: SamplerChoice
    guidance: Guidance
    image: Path | None = None
    strength: float = 0.6
    mask: Path | None = None
    to_seed: int | None = None

    def __post_init__(self) -> None:
        for is_wrong, sentence in (
            (self.count < 1, f"--n is {self.count}: it must be at least 1"),
            (not 0.0 < self.strength <= 1.0, f"--strength is {self.strength}: it must be above 0 and at most 1"),
            (min(self.seed, self.to_seed or 0) < 0, "a seed is negative: it must be at least 0"),
            (self.mask is not None and self.image is None, "--mask has no image: name one with --image"),
            (self.image is not None and self.to_seed is not None, "--to and --image exclude each other: leave one out"),
            (self.to_seed is not None and self.count < 2, "--to needs at least two images: raise --n"),
        ):
            if is_wrong:
                raise UserError(sentence)


def request(
    count: int,
    class_name: str | None,
    seed: int,
    sampler: str,
    steps: int | None,
    guidance: float,
    image: Path | None,
    strength: float,
    mask: Path | None,
    to_seed: int | None,
) -> Request:
    """Return a request of the options of the command.

    Raises:
        UserError: an option is out of its range, or excludes another.
    """
    try:
        chosen: SamplerChoice = choose(
            SamplerChoice, sampler, "--sampler", **({} if steps is None else {"steps": steps})
        )
        scale = Guidance(guidance)
    except ValueError as error:
        raise UserError(str(error)) from None
    return Request(count, class_name, seed, chosen, scale, image, strength, mask, to_seed)


def run(environment: Environment, name: str, wanted: Request, out: Path) -> None:
    """Sample images and write them: to a folder of PNG files, or to one file `*.png` (a grid) or `*.npy` (an array).

    The PNG files have model, seed, sampler and guidance in their metadata, and those of one image its index and class.

    Args:
        environment: the environment.
        name: see `find_model`.
        wanted: what is asked for.
        out: the folder or file; a folder must be new or empty, and a file is replaced.

    Raises:
        UserError: the model, a class, a file or an option is wrong, there is too little memory, or `out` has files.
        Unavailable: the tracking store does not answer.
    """
    if out.suffix not in WRITTEN and out.suffix.lower() in OTHERS and not out.is_dir():
        raise UserError(f"--out is {out}: name a folder, or a file *.png (a grid) or *.npy (an array)")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} has files already: name another folder with --out")
    device = choose_device(environment.device)
    found = find_model(environment, name)
    with found.files() as folder:
        model = load_model(folder, device)
    diffusion = model.diffusion
    size = wanted.count * math.prod(diffusion.image_size) * diffusion.channels
    if 2 * size > (free := free_memory()):
        raise UserError(
            f"--n is {wanted.count}, whose images have {size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB of memory are"
            " free: sample fewer at a time, each time with another --seed"
        )
    labels = _labels(model, wanted)
    try:
        images, _ = make_all(
            diffusion,
            _make(model, wanted),
            wanted.count,
            seed=wanted.seed,
            labels=labels,
            batch_size=environment.sample_batch_size,
            dtype=choose_dtype(environment.precision, device).dtype,
            task="draw",
            times=[t for t, _ in wanted.sampler.transitions(diffusion.schedule)],
        )
    except ValueError as error:
        raise UserError(f"{name} cannot be sampled like this: {error}") from None
    _write(images, out, found, wanted, labels, model.class_names)
    print(f"{out} has {count_of(wanted.count, 'image')} by {wanted.sampler.kind}")


def _labels(model: TrainedModel, wanted: Request) -> list[int] | None:
    if wanted.class_name is None:
        labels = model.labels(wanted.count)
        # From one seed to another, of one class.
        return labels if labels is None or wanted.to_seed is None else labels[:1] * wanted.count
    return [model.label(wanted.class_name)] * wanted.count


def _make(model: TrainedModel, wanted: Request) -> Make:
    diffusion = model.diffusion
    options: dict[str, Any] = {"sampler": wanted.sampler, "guidance": wanted.guidance}
    if wanted.to_seed is not None:
        strip = _strip(wanted, (diffusion.channels, *diffusion.image_size))
        return lambda randn, classes, indices: diffusion.sample(
            len(indices),
            noise=strip[indices.start : indices.stop].to(diffusion.device),
            randn=randn,
            classes=classes,
            **options,
        )
    if wanted.image is None:
        return lambda randn, classes, indices: diffusion.sample(len(indices), randn=randn, classes=classes, **options)
    read = partial(_read, size=diffusion.image_size)
    pixels = torch.from_numpy(read(wanted.image, channels=diffusion.channels) / np.float32(255)).movedim(-1, 0)
    times = [time for time, _ in wanted.sampler.transitions(diffusion.schedule)]
    if wanted.mask is None:
        # At least the last timestep of the sampler, or it would have nothing to do.
        t = max(round(wanted.strength * (diffusion.num_timesteps - 1)), math.ceil(min(times)))
        return lambda randn, classes, indices: diffusion.resample(
            _repeated(pixels, indices), t, randn=randn, classes=classes, **options
        )
    known = torch.from_numpy(read(wanted.mask, channels=1)[..., 0] < MIDDLE).float()
    options["jump_length"] = max(1, min(JUMP_LENGTH, len(times) - 1))
    return lambda randn, classes, indices: diffusion.inpaint(
        _repeated(pixels, indices), known, randn=randn, classes=classes, **options
    )


def _repeated(pixels: Tensor, indices: range) -> Tensor:
    return pixels.expand(len(indices), *pixels.shape)


def _strip(wanted: Request, shape: tuple[int, ...]) -> Tensor:
    """Return noises on the great circle from image 0 of one seed to that of the other, (count, C, H, W).

    A weighted mean of two noises would have less variance than noise (Shoemake 1985, "Animating rotation with
    quaternion curves").
    """
    assert wanted.to_seed is not None
    like = torch.empty(1, *shape)
    first, last = (ImageNoise(seed, range(1))(like)[0] for seed in (wanted.seed, wanted.to_seed))
    cosine = torch.nn.functional.cosine_similarity(first.flatten(), last.flatten(), dim=0)
    angle = torch.arccos(cosine.clamp(-1.0, 1.0))
    if angle < 1e-3:
        return first.expand(wanted.count, *shape)
    places = torch.linspace(0.0, 1.0, wanted.count).view(-1, *(1 for _ in shape))
    return (torch.sin((1.0 - places) * angle) * first + torch.sin(places * angle) * last) / torch.sin(angle)


def _read(file: Path, *, size: tuple[int, int], channels: int) -> NDArray[np.uint8]:
    """Return the pixels of a file as `prepare` would make them, uint8 (H, W, C)."""
    try:
        decoded = decode(file.read_bytes(), Decoding(size, channels))
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): name an image") from None
    if decoded.pixels is None:
        raise UserError(f"{file} is not an image that decodes ({decoded.reason}): name another")
    return decoded.pixels


def _write(
    images: NDArray[np.uint8],
    out: Path,
    model: NamedModel,
    wanted: Request,
    labels: list[int] | None,
    classes: tuple[str, ...],
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    made = {"model": model.name, "digest": model.digest, "seed": wanted.seed, "sampler": asdict(wanted.sampler)}
    made |= {"guidance": asdict(wanted.guidance)}
    if out.suffix == ".npy":
        with replaced_file(out) as beside:
            save_array(beside, images)
    elif out.suffix == ".png":
        shown = grid(images, columns=wanted.count if wanted.to_seed is not None else COLUMNS)
        with replaced_file(out) as beside:
            beside.write_bytes(png(shown, made | {"n": wanted.count}))
    else:
        made |= {key: str(value) for key in ("image", "mask", "to_seed") if (value := getattr(wanted, key)) is not None}
        with replaced(out) as folder:
            for index, image in enumerate(images):
                about = made | {"index": index}
                if labels is not None:
                    about["class"] = classes[labels[index]]
                (folder / f"{index:05d}.png").write_bytes(png(picture(image), about))
