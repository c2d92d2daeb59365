"""Checks of a caller's arguments against the process; each message names the argument and its valid values."""

import torch
from torch import Tensor

from diffusion_core.runtime.device import to_device

# By how much images in [0, 1] may be outside.
OVERSHOOT = 0.5


def check_images(images: Tensor, image_shape: tuple[int, ...]) -> None:
    """Check that images are floating point, (B, *image_shape).

    Raises:
        ValueError: the shape or the dtype differs.
    """
    if tuple(images.shape[1:]) != image_shape:
        raise ValueError(f"the images are {tuple(images.shape[1:])}; this process is for {image_shape}")
    if not images.is_floating_point():
        raise ValueError(f"the images are {images.dtype}; they must be floating point, in [0, 1]")


def has_checked_values(images: Tensor) -> bool:
    """Check that images lie about in [0, 1], and return whether it was possible: not while a CUDA graph is recorded.

    Resizing may overshoot a little. The check waits for a GPU, so the first images of a process are enough.

    Raises:
        ValueError: a value is far outside.
    """
    if images.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    least, most = (float(each) for each in images.aminmax())
    if least < -OVERSHOOT or most > 1.0 + OVERSHOOT:
        raise ValueError(
            f"the images lie between {least:.3g} and {most:.3g}; they must lie in [0, 1]: divide bytes by 255, and"
            " give auto_normalize=False to a process whose images lie in [-1, 1]"
        )
    return True


def checked_classes(
    classes: Tensor | None, batch_size: int, num_classes: int | None, device: torch.device
) -> Tensor | None:
    """Return labels, int64 (B,), on the device.

    Raises:
        ValueError: the network takes no classes, the shape or dtype differs, or a label on the CPU is out of range.
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
    # On a GPU this check would synchronise with the host; there the embedding fails on an invalid label.
    if classes.device.type == "cpu":
        for label in classes[(classes < 0) | (classes >= num_classes)].tolist():
            raise ValueError(f"classes has the label {label}; labels must lie in 0 .. {num_classes - 1}")
    return to_device(classes, device)


def checked_mask(mask: Tensor, images: Tensor, device: torch.device) -> Tensor:
    """Return a mask of known pixels as bool on the device.

    Raises:
        ValueError: it is not a tensor of 0 and 1 that broadcasts to the shape of the images.
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
    """Check that the network has the number of output channels that the process `name` needs.

    Raises:
        ValueError: the number differs.
    """
    wanted = channels * outputs_per_channel
    if out_dim != wanted:
        raise ValueError(f"out_dim is {out_dim}; {name} needs {wanted} for images of {channels} channels")


def checked_image_size(image_size: int | tuple[int, int], factor: int) -> tuple[int, int]:
    """Return (height, width), each a multiple of `factor`, the network's downsampling factor.

    Raises:
        ValueError: there are not two numbers, or one is not a multiple of `factor`.
    """
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(sides) != 2 or any(side < 1 or side % factor for side in sides):
        raise ValueError(f"image_size is {sides}; it must be two multiples of {factor} for this network")
    return sides[0], sides[1]


def check_default_sampler(sampling_timesteps: int, ddim_sampling_eta: float, timesteps: int) -> None:
    """Check that `sampling_timesteps` is in 1 .. T and `ddim_sampling_eta` in [0, 1].

    Raises:
        ValueError: one of them is out of its range.
    """
    if not 1 <= sampling_timesteps <= timesteps:
        raise ValueError(f"sampling_timesteps is {sampling_timesteps}; it must lie in 1 .. {timesteps}, as timesteps")
    if not 0.0 <= ddim_sampling_eta <= 1.0:
        raise ValueError(f"ddim_sampling_eta is {ddim_sampling_eta}; it must lie in [0, 1]")
