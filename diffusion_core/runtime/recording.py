"""CUDA graphs of functions of tensors: one launch by the host replaces thousands."""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Inputs = tuple[Tensor | None, ...]

# Maximum number of recordings of one function, because each keeps its own memory. Micro-batches of an odd size have
# many combinations of shapes, because their numbers of self-conditioning estimates differ.
MOST = 4


class Recording(Generic[Result]):
    """A function recorded as a CUDA graph, which each call replays. Recording computes no results.

    The function's operations must not depend on the values of its inputs, and it must have run with inputs of these
    shapes before. The next call overwrites the results. Each replay uses new numbers of PyTorch's global generator.

    Args:
        function: the function of tensors on one CUDA device.
        inputs: tensors with the shapes and dtypes of later calls; some may be None.

    Raises:
        RuntimeError: a CUDA graph cannot record the function, or memory is too small.
    """

    def __init__(self, function: Callable[..., Result], inputs: Inputs) -> None:
        self._device = next(each.device for each in inputs if each is not None)
        with torch.inference_mode(False):  # inference tensors can be written only in inference mode
            self._inputs = tuple(None if each is None else each.clone() for each in inputs)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            index = torch.cuda.current_device() if self._device.index is None else self._device.index
            offset = torch.cuda.default_generators[index].get_offset()
            pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self._device)
            stream.wait_stream(torch.cuda.current_stream(self._device))
            # Entered here too, because a failed capture does not exit its stream.
            with torch.cuda.stream(stream):
                try:
                    # Other threads may use the device meanwhile, for example to read the next batch.
                    with torch.cuda.graph(self._graph, pool, stream, capture_error_mode="thread_local"):
                        self._result: Result = function(*self._inputs)
                except BaseException:
                    _end_refused_capture(index, pool, offset)
                    raise
            torch.cuda.current_stream(self._device).wait_stream(stream)

    def __call__(self, *inputs: Tensor | None) -> Result:
        """Copy the inputs, replay the graph and return the results, which the next call overwrites."""
        with torch.cuda.device(self._device):
            for own, given in zip(self._inputs, inputs, strict=True):
                if own is not None and given is not None:
                    own.copy_(given)
            self._graph.replay()
        return self._result


def _end_refused_capture(index: int, pool: tuple[int, int], offset: int) -> None:
    """Release the memory pool and reset the generator after a failed capture, which PyTorch does not do.

    Args:
        index: index of the device.
        pool: the graph's memory pool.
        offset: offset of the device's global generator before the capture.
    """
    # Matrix products keep a workspace in the graph's pool.
    torch._C._cuda_clearCublasWorkspaces()
    # Otherwise tensors would still be allocated in that pool, and its memory would never be released. PyTorch has no
    # public calls for this. If the capture failed before its end, the pool is released already and the first call
    # raises.
    with suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(index, pool)
        torch._C._cuda_releasePool(index, pool)
    # The generator would still use the graph's state.
    own = torch.cuda.default_generators[index]
    other = torch.Generator(f"cuda:{index}").manual_seed(own.initial_seed())
    other.set_offset(offset)
    own.graphsafe_set_state(other)


class Replayed(Generic[Result]):
    """A function that runs normally at the first call, to compile and select kernels, and then as a CUDA graph.

    Each combination of shapes and dtypes has its own recording, at most `MOST`. Beyond that, or if recording fails, the
    function runs normally after a warning.

    Args:
        function: a function of tensors on one CUDA device; some may be None. See `Recording`.
        name: its name in warnings.
    """

    def __init__(self, function: Callable[..., Result], name: str) -> None:
        self._function: Callable[..., Result] = function
        self._name = name
        self._recordings: dict[object, Recording[Result] | None] = {}
        self._warm: set[object] = set()
        self._warned = False

    def __call__(self, *inputs: Tensor | None) -> Result:
        """Return the function's result for the inputs; the next call may overwrite it."""
        shapes = tuple(None if each is None else (each.shape, each.dtype) for each in inputs)
        signature = (shapes, torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
        if signature in self._warm and signature not in self._recordings:
            self._recordings[signature] = self._record(inputs)
        recording = self._recordings.get(signature)
        if recording is not None:
            return recording(*inputs)
        result = self._function(*inputs)
        if signature not in self._warm:
            if len(self._warm) < MOST:
                self._warm.add(signature)
            else:
                self._warn(f"{self._name} of some shapes is", f"at most {MOST} shapes are recorded")
        return result

    def _record(self, inputs: Inputs) -> Recording[Result] | None:
        try:
            return Recording(self._function, inputs)
        except RuntimeError as error:
            self._warn(f"{self._name} is", " ".join(str(error).split()))
            return None

    def _warn(self, what: str, reason: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%s not replayed as a CUDA graph (%s): slower where images are small", what, reason)


class ReplayedPasses:
    """The forward pass of a denoising network, replayed as a CUDA graph if gradients are disabled.

    Replaces the network's `forward`. Results are new tensors.

    Args:
        network: the network, on a CUDA device.
    """

    def __init__(self, network: nn.Module) -> None:
        self._forward: Callable[..., Tensor] = network.forward
        self._replayed = Replayed(self._forward, "a pass of the network")
        self._self_condition: bool = getattr(network, "self_condition", False)

    def __call__(self, x: Tensor, t: Tensor, *conditions: Tensor | None) -> Tensor:
        """Return the network's output for x_t, t, x0-hat and labels."""
        if torch.is_grad_enabled():
            return self._forward(x, t, *conditions)
        if self._self_condition and (not conditions or conditions[0] is None):
            # The network's default, zeros, so that the first sampling step needs no separate recording.
            conditions = (torch.zeros_like(x), *conditions[1:])
        output: Tensor = self._replayed(x, t, *conditions)
        return output.clone()
