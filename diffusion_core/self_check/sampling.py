"""Whether a network that is compiled for sampling gives what it does as it is written."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.runtime.device import to_device
from diffusion_core.self_check.comparison import (
    TOLERANCE,
    Values,
    Verdict,
    cannot_run,
    compare,
    exact_float32,
    judge_precision,
)

# Images that the plain network has at a time, so that memory for sampling suffices for it too.
AT_A_TIME = 16


def check_sampling(plain: GaussianDiffusion, fast: GaussianDiffusion, dtype: torch.dtype, count: int) -> Verdict:
    """Return whether the network of `fast` gives what that of `plain`, the same weights run eagerly, does.

    Args:
        plain: in eval mode.
        fast: compiled for sampling.
        dtype: of the networks' products.
        count: images at a time, as sampling will have them.
    """
    inputs = _inputs(plain, count)
    way = f"{str(dtype).removeprefix('torch.')}, compiled for sampling {count} at a time"
    try:
        with exact_float32():
            reference = _output(plain.model, inputs, torch.float32, AT_A_TIME)
        eager = _output(plain.model, inputs, dtype, AT_A_TIME)
        verdicts = [judge_precision(f"{way}: precision", reference, eager)]
        # A network compiles at its first pass, is recorded at its second, with other inputs, and replayed at its third.
        runs = [_output(fast.model, each, dtype, count) for each in (inputs, _inputs(plain, count, seed=1), inputs)]
        verdicts += [compare(way, reference, eager, output, TOLERANCE[dtype]) for output in (runs[0], runs[2])]
    # What compilers raise, what a full disk does, what graphs cannot hold, and memory that is too small.
    except (RuntimeError, OSError) as error:
        return cannot_run(way, error)
    return next((verdict for verdict in verdicts if not verdict.passed), verdicts[-1])


def _inputs(process: GaussianDiffusion, count: int, seed: int = 0) -> list[Tensor | None]:
    """Return x_t, t, x0-hat and labels of so many images, on the process's device."""
    source = torch.Generator().manual_seed(seed)
    x_t, x0 = torch.randn((2, count, process.channels, *process.image_size), generator=source)
    times = torch.randint(process.num_timesteps, (count,), generator=source)
    inputs: list[Tensor | None] = [x_t, times, x0 if process.self_condition else None]
    if process.num_classes is not None:
        inputs.append((torch.arange(count) + seed) % (process.num_classes + 1))
    return [None if each is None else to_device(each, process.device) for each in inputs]


@torch.inference_mode()
def _output(network: nn.Module, inputs: Sequence[Tensor | None], dtype: torch.dtype, at_a_time: int) -> Values:
    first = inputs[0]
    assert first is not None
    parts = []
    with torch.autocast(first.device.type, dtype, enabled=dtype != torch.float32):
        for start in range(0, len(first), at_a_time):
            part = [None if each is None else each[start : start + at_a_time] for each in inputs]
            parts.append(network(*part).float().cpu())
    return {"the output": torch.cat(parts)}
