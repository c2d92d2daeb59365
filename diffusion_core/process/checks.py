"""Whether what a caller hands in fits the process; each message names the argument and what it must be."""

import torch
from torch import Tensor

from diffusion_core.runtime.device import to_device


def check_images(images: Tensor, image_shape: tuple[int, ...]) -> None:
    """Refuse images that are not floating point (B, *image_shape).

    Raises:
        ValueError: they are of another shape or type.
    """
    if tuple(images.shape[1:]) != image_shape:
        raise ValueError(f"the images are {tuple(images.shape[1:])}; this process is for {image_shape}")
    if not images.is_floating_point():
        raise ValueError(f"the images are {images.dtype}; they must be floating point, in [0, 1]")


def checked_classes(
    classes: Tensor | None, batch_size: int, num_classes: int | None, device: torch.device
) -> Tensor | None:
    """Return labels, int64 (B,), on the device.

    Raises:
        ValueError: the network takes none, they are no such tensor, or one that lies on the host is out of range.
    """
    if classes is None:
        return None
    if num_classes is None:
        raise ValueError("classes are given, but the network has no num_classes: leave them out")
    if not isinstance(classes, Tensor):
        raise ValueError(f"classes is a {type(classes).__name__}; it must be a tensor, int64 of {(batch_size,)}")
    if classes.shape != (batch_size,) or classes.dtype != torch.long:
        raise ValueError(
            f"classes is {classes.dtype} of shape {tuple(classes.shape)}; it must be int64 of {(batch_size,)}"
        )
    # On another device, looking would make the host wait; the embedding there stops at a wrong label itself.
    if classes.device.type == "cpu":
        for label in classes[(classes < 0) | (classes >= num_classes)].tolist():
            raise ValueError(f"classes has the label {label}; labels must lie in 0 .. {num_classes - 1}")
    return to_device(classes, device)


def checked_mask(mask: Tensor, images: Tensor, device: torch.device) -> Tensor:
    """Return a mask of known pixels as bool on the device.

    Raises:
        ValueError: it is no tensor of 0 and 1 that broadcasts against the images.
    """
    if not isinstance(mask, Tensor):
        raise ValueError(f"mask is a {type(mask).__name__}; it must be a tensor of 0 and 1")
    known = mask.to(device) == 1
    try:
        torch.broadcast_to(known, images.shape)
    except RuntimeError:
        raise ValueError(f"mask is {tuple(mask.shape)}; it must broadcast to {tuple(images.shape)}") from None
    if not bool((known | (mask.to(device) == 0)).all()):
        raise ValueError(f"mask has values between {float(mask.min())} and {float(mask.max())}; each must be 0 or 1")
    return known


def check_network(out_dim: int, channels: int, outputs_per_channel: int, name: str) -> None:
    """Refuse a network that gives another number of channels than the process `name` asks for.

    Raises:
        ValueError: it does.
    """
    wanted = channels * outputs_per_channel
    if out_dim != wanted:
        raise ValueError(f"out_dim is {out_dim}; {name} needs {wanted} for images of {channels} channels")


def checked_image_size(image_size: int | tuple[int, int], factor: int) -> tuple[int, int]:
    """Return height and width, each a multiple of `factor`, by which the network halves images.

    Raises:
        ValueError: they are not two such numbers.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or any(side < 1 or side % factor for side in sides):
        raise ValueError(f"image_size is {sides}; it must be two multiples of {factor} for this network")
    return sides[0], sides[1]


def check_default_sampler(sampling_timesteps: int, ddim_sampling_eta: float, timesteps: int) -> None:
    """Refuse a number of steps that the process does not have, and a share of noise outside [0, 1].

    Raises:
        ValueError: it is one of them.
    """
    if not 1 <= sampling_timesteps <= timesteps:
        raise ValueError(f"sampling_timesteps is {sampling_timesteps}; it must lie in 1 .. {timesteps}, as timesteps")
    if not 0.0 <= ddim_sampling_eta <= 1.0:
        raise ValueError(f"ddim_sampling_eta is {ddim_sampling_eta}; it must lie in [0, 1]")
