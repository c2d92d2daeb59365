"""Functions of tensors that a CUDA device replays by itself: one launch by the host in the place of thousands."""

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Inputs = tuple[Tensor | None, ...]


class Recording(Generic[Result]):
    """One run of a function on a CUDA device, recorded as a graph (nothing is computed yet) and replayed by each call.

    The function must do the same work whatever its inputs hold, and must have run before with such inputs. Its results
    are overwritten by the next call. Random numbers of torch's global generator are new in each replay.

    Raises:
        RuntimeError: the function does what a graph cannot hold, or memory is too small; nothing was computed.
    """

    def __init__(self, function: Callable[..., Result], inputs: Inputs) -> None:
        with torch.inference_mode(False):  # else they could be written in inference mode alone
            self._inputs = tuple(None if each is None else each.clone() for each in inputs)
        self._graph = torch.cuda.CUDAGraph()
        # Blocks that this process holds free are of no use to a graph, which has memory of its own.
        torch.cuda.empty_cache()
        # Other threads, that read the next batch say, may use the device meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._result: Result = function(*self._inputs)

    def __call__(self, *inputs: Tensor | None) -> Result:
        for own, given in zip(self._inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        self._graph.replay()
        return self._result


class Replayed(Generic[Result]):
    """A function that runs once as it is, which compiles and chooses kernels, and is replayed from then on.

    Inputs of other shapes or types than the recorded ones, and what cannot be recorded, run as they are, after a
    warning.

    Args:
        function: of tensors on one CUDA device, some of which may be None; see `Recording`.
        name: what it is, for warnings.
    """

    def __init__(self, function: Callable[..., Result], name: str) -> None:
        self._function: Callable[..., Result] = function
        self._name = name
        self._warm: set[object] = set()
        self._recorded: tuple[object, Recording[Result] | None] | None = None
        self._warned = False

    def __call__(self, *inputs: Tensor | None) -> Result:
        signature = tuple(None if each is None else (each.shape, each.dtype) for each in inputs)
        if self._recorded is None and signature in self._warm:
            self._recorded = (signature, self._record(inputs))
        self._warm.add(signature)
        if self._recorded is None:
            return self._function(*inputs)
        recorded, recording = self._recorded
        if recording is None or recorded != signature:
            if recording is not None:
                self._warn(f"inputs of other shapes than those recorded: {_shapes(inputs)}")
            return self._function(*inputs)
        return recording(*inputs)

    def _record(self, inputs: Inputs) -> Recording[Result] | None:
        try:
            return Recording(self._function, inputs)
        except RuntimeError as error:
            self._warn(" ".join(str(error).split()))
            return None

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%s is not replayed as a CUDA graph (%s): slower where images are small", self._name, reason)


def _shapes(inputs: Inputs) -> str:
    return ", ".join("none" if each is None else str(tuple(each.shape)) for each in inputs)
