"""The self-check of sampling: compares a compiled network with the eager one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.runtime.device import to_device
from diffusion_core.runtime.precision import exact_float32
from diffusion_core.self_check import comparison
from diffusion_core.self_check.comparison import Values, Verdict

# Images per pass of the eager network, so that it needs no more memory than sampling.
AT_A_TIME = 16


def check_sampling(plain: GaussianDiffusion, fast: GaussianDiffusion, dtype: torch.dtype, count: int) -> Verdict:
    """Return whether the compiled network of `fast` computes the same output as the eager network of `plain`.

    Args:
        plain: the process with an eager network, in eval mode.
        fast: the process with the same weights, compiled for sampling.
        dtype: dtype of the networks' matrix products.
        count: batch size of sampling.
    """
    inputs = _inputs(plain, count)
    way = f"{str(dtype).removeprefix('torch.')}, compiled for sampling {count} at a time"
    try:
        with exact_float32():
            reference = _output(plain.model, inputs, torch.float32, AT_A_TIME)
        eager = _output(plain.model, inputs, dtype, AT_A_TIME)
        verdicts = [comparison.judge_precision(f"{way}: precision", reference, eager)]
        # The network compiles at the first pass. The second, with other inputs, records it; the third replays it.
        runs = [_output(fast.model, each, dtype, count) for each in (inputs, _inputs(plain, count, seed=1), inputs)]
        verdicts += [
            comparison.compare(way, reference, eager, output, comparison.TOLERANCE[dtype])
            for output in (runs[0], runs[2])
        ]
    # Errors of compilers, full disks, CUDA graphs and too little memory.
    except (RuntimeError, OSError) as error:
        return comparison.cannot_run(way, error)
    return next((verdict for verdict in verdicts if not verdict.passed), verdicts[-1])


def _inputs(process: GaussianDiffusion, count: int, seed: int = 0) -> list[Tensor | None]:
    """Return x_t, t, x0-hat and labels of `count` images, on the process's device."""
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
