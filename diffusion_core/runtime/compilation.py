"""torch.compile by regions, without an optimisation of Inductor that gives wrong results."""

from collections.abc import Iterable
from importlib.util import find_spec

import torch
from torch import nn

from diffusion_core.runtime.recording import ReplayedPasses

# Inductor fuses a sum over rows with a sum over columns by default since PyTorch 2.10. On CUDA this gives wrong
# gradients of normalisation. Parts of a concatenated gradient, as of scale and shift, are never written (PyTorch issue
# 193061), and other gradients have another shape than their parameter (issue 178080).
OPTIONS: dict[str, str | int | bool] = {"triton.mix_order_reduction": False}

# A region is compiled for each shape, with and without gradient; Dynamo's default limit is 8.
RECOMPILE_LIMIT = 128

# Triton's minimum compute capability (NVIDIA Volta).
LEAST_CAPABILITY = (7, 0)


def compiler_problem(device: torch.device) -> str | None:
    """Return why compiling for a CUDA device is impossible, or None if it is possible or the device is another."""
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
    """Compile a network in place with torch.compile, at its first call.

    If the network has `regions()`, each region is compiled separately and regions of equal shapes share kernels; the
    code between them stays eager. Otherwise the whole network is compiled.

    This also disables cuDNN's attention in this process, and runs dropout eagerly.
    """
    # cuDNN's attention is the newest of PyTorch's four, and is not faster for a few hundred pixels.
    torch.backends.cuda.enable_cudnn_sdp(False)
    # The self-check runs without dropout, so dropout must not be fused into the checked kernels.
    torch._dynamo.disallow_in_graph(torch.nn.functional.dropout)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    # Only the options that this version of Inductor has.
    options = {name: value for name, value in OPTIONS.items() if name in torch._inductor.list_options()}
    regions: Iterable[nn.Module] = network.regions() if hasattr(network, "regions") else [network]  # type: ignore[operator]
    for region in regions:
        region.compile(dynamic=False, options=options)


def compile_for_sampling(network: nn.Module) -> None:
    """Compile a network in place for forward passes without gradient; on CUDA, replay them as CUDA graphs.

    A network without `regions()` is not replayed.
    """
    compile_network(network)
    if hasattr(network, "regions") and next(network.parameters()).device.type == "cuda":
        network.forward = ReplayedPasses(network)


def forget_compilation(network: nn.Module) -> None:
    """Make a network run eagerly again."""
    for part in network.modules():
        # Set by nn.Module.compile; PyTorch has no call to undo it.
        part._compiled_call_impl = None
