"""torch.compile as this project uses it: by regions, and without what Inductor is known to get wrong."""

from collections.abc import Iterable
from importlib.util import find_spec

import torch
from torch import nn

from diffusion_core.runtime.recording import ReplayedPasses

# Inductor's fusion of a sum over rows with one over columns, on by default since PyTorch 2.10, gives wrong gradients of
# normalisation on CUDA: parts of a concatenated one, as of scale and shift, are never written (PyTorch issue 193061),
# and others have another shape than their parameter (issue 178080).
OPTIONS: dict[str, str | int | bool] = {"triton.mix_order_reduction": False}

# A region is compiled for each shape it has, with gradient and without; Dynamo gives up after 8 by itself.
RECOMPILE_LIMIT = 128

# Triton's own limit (NVIDIA Volta).
LEAST_CAPABILITY = (7, 0)


def compiler_problem(device: torch.device) -> str | None:
    """Return why nothing can be compiled for a CUDA device, or None."""
    if device.type != "cuda":
        return None
    if find_spec("triton") is None:
        return "Triton is not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        version = ".".join(map(str, capability))
        return f"{torch.cuda.get_device_name(device)} is too old for Triton (compute capability {version})"
    return None


def compile_network(network: nn.Module) -> None:
    """Let torch.compile build the kernels of a network, in place, when they are first needed.

    A network that names its `regions()` is compiled one by one: regions of equal shapes share their kernels, and what
    lies between them stays as it is. Any other is compiled whole.

    In this process cuDNN's attention is then switched off, and dropout runs eagerly.
    """
    # cuDNN's attention is the youngest of PyTorch's four, and over a few hundred pixels it gains nothing.
    torch.backends.cuda.enable_cudnn_sdp(False)
    # The self-check runs without dropout, so dropout must not be fused into a kernel that it has checked.
    torch._dynamo.disallow_in_graph(torch.nn.functional.dropout)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    # An Inductor that no longer has the option has nothing to switch off.
    options = {name: value for name, value in OPTIONS.items() if name in torch._inductor.list_options()}
    regions: Iterable[nn.Module] = network.regions() if hasattr(network, "regions") else [network]  # type: ignore[operator]
    for region in regions:
        region.compile(dynamic=False, options=options)


def compile_for_sampling(network: nn.Module) -> None:
    """Compile a network in place for passes without gradient, which a CUDA device then replays as graphs.

    One that is compiled whole is not replayed.
    """
    compile_network(network)
    if hasattr(network, "regions") and next(network.parameters()).device.type == "cuda":
        network.forward = ReplayedPasses(network)


def forget_compilation(network: nn.Module) -> None:
    """Let a network run as it is written again."""
    for part in network.modules():
        # What nn.Module.compile sets; PyTorch has no call that takes it back.
        part._compiled_call_impl = None
