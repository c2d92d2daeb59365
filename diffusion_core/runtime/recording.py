"""Functions of tensors that a CUDA device replays by itself: one launch by the host in the place of thousands."""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Inputs = tuple[Tensor | None, ...]

# Recordings of one function; each keeps memory of its own. Micro-batches of an odd size have many combinations of
# shapes: their numbers of self-conditioning estimates differ.
MOST = 4


class Recording(Generic[Result]):
    """One run of a function on a CUDA device, recorded as a graph (nothing is computed yet) and replayed by each call.

    The function must do the same work whatever its inputs hold, and must have run before with such inputs. Its results
    are overwritten by the next call. Random numbers of torch's global generator are new in each replay.

    Raises:
        RuntimeError: the function does what a graph cannot hold, or memory is too small; nothing was computed.
    """

    def __init__(self, function: Callable[..., Result], inputs: Inputs) -> None:
        self._device = next(each.device for each in inputs if each is not None)
        with torch.inference_mode(False):  # else they could be written in inference mode alone
            self._inputs = tuple(None if each is None else each.clone() for each in inputs)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            index = torch.cuda.current_device() if self._device.index is None else self._device.index
            offset = torch.cuda.default_generators[index].get_offset()
            pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self._device)
            stream.wait_stream(torch.cuda.current_stream(self._device))
            # Entered here too, because a capture that is refused does not leave its stream.
            with torch.cuda.stream(stream):
                try:
                    # Other threads, that read the next batch say, may use the device meanwhile.
                    with torch.cuda.graph(self._graph, pool, stream, capture_error_mode="thread_local"):
                        self._result: Result = function(*self._inputs)
                except BaseException:
                    _end_refused_capture(index, pool, offset)
                    raise
            torch.cuda.current_stream(self._device).wait_stream(stream)

    def __call__(self, *inputs: Tensor | None) -> Result:
        with torch.cuda.device(self._device):
            for own, given in zip(self._inputs, inputs, strict=True):
                if own is not None and given is not None:
                    own.copy_(given)
            self._graph.replay()
        return self._result


def _end_refused_capture(index: int, pool: tuple[int, int], offset: int) -> None:
    """Undo what PyTorch leaves behind where CUDA refuses a capture at its end: memory and random numbers of the graph.

    Args:
        index: of the device.
        pool: of the graph.
        offset: where the device's global generator stood before the capture.
    """
    # Products of matrices keep a workspace in the graph's pool.
    torch._C._cuda_clearCublasWorkspaces()
    # Tensors would still be allocated in that pool, and its memory never be released. PyTorch has no public call for
    # either. A capture that failed before its end has released the pool already; then the first call raises.
    with suppress(RuntimeError):
        torch._C._cuda_endAllocateToPool(index, pool)
        torch._C._cuda_releasePool(index, pool)
    # And the generator would still count for the graph.
    own = torch.cuda.default_generators[index]
    other = torch.Generator(f"cuda:{index}").manual_seed(own.initial_seed())
    other.set_offset(offset)
    own.graphsafe_set_state(other)


class Replayed(Generic[Result]):
    """A function that runs once as it is, which compiles and chooses kernels, and is replayed from then on.

    Each combination of shapes and types has a recording of its own, of which there are at most `MOST`. What is beyond
    that, or cannot be recorded, runs as it is, after a warning.

    Args:
        function: of tensors on one CUDA device, some of which may be None; see `Recording`.
        name: what it is, for warnings.
    """

    def __init__(self, function: Callable[..., Result], name: str) -> None:
        self._function: Callable[..., Result] = function
        self._name = name
        self._recordings: dict[object, Recording[Result] | None] = {}
        self._warm: set[object] = set()
        self._warned = False

    def __call__(self, *inputs: Tensor | None) -> Result:
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
    """The forward pass of a denoising network, replayed where no gradient is asked for.

    Takes the place of the network's own `forward`. Results are new tensors.
    """

    def __init__(self, network: nn.Module) -> None:
        self._forward: Callable[..., Tensor] = network.forward
        self._replayed = Replayed(self._forward, "a pass of the network")
        self._self_condition: bool = getattr(network, "self_condition", False)

    def __call__(self, x: Tensor, t: Tensor, *conditions: Tensor | None) -> Tensor:
        if torch.is_grad_enabled():
            return self._forward(x, t, *conditions)
        if self._self_condition and (not conditions or conditions[0] is None):
            # What the network itself takes for none, so that the first step of sampling needs no recording of its own.
            conditions = (torch.zeros_like(x), *conditions[1:])
        output: Tensor = self._replayed(x, t, *conditions)
        return output.clone()
