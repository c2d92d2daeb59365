"""Writes checkpoints behind the training: a step waits for a copy in memory, and not for the disk."""

from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from diffusion_core.lineage.checkpoints import KEEP
from diffusion_core.training.checkpoint import Checkpoint, save_checkpoint
from diffusion_core.training.divergence import check_finite


def _single_threaded_pool() -> ThreadPoolExecutor:
    """Return a pool of one thread, in which PyTorch uses no further ones.

    With a second team of OpenMP's threads in the process, those of the training no longer spin while they wait, which
    halves the speed of small steps.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(1, "checkpoint", initializer=torch.set_num_threads, initargs=(1,))
    # It starts here, because PyTorch takes the last number that was set for threads that begin later.
    pool.submit(torch.get_num_threads).result()
    torch.set_num_threads(threads)
    return pool


class Saver:
    """Saves the checkpoints of one training, each in a thread, one at a time.

    It keeps a copy of a checkpoint's tensors, in memory that is used again. The end of its `with` block waits until the
    last checkpoint is on disk.

    Args:
        folder: the folder of the checkpoints.
        keep: number of the newest checkpoints to keep; see `save_checkpoint`.
    """

    def __init__(self, folder: Path, keep: int = KEEP) -> None:
        self._folder = folder
        self._keep = keep
        self._copies: dict[tuple[str, str], Tensor] = {}
        self._pool = _single_threaded_pool()
        self._writing: Future[None] | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint and return; the copy is being written. Waits for the checkpoint before it.

        Raises:
            TrainingDiverged, OSError: see `wait`; of the checkpoint before this one.
        """
        self.wait()
        tensors = {
            part: {name: self._copied(part, name, tensor) for name, tensor in named.items()}
            for part, named in checkpoint.tensors.items()
        }
        if any(tensor.is_cuda for named in checkpoint.tensors.values() for tensor in named.values()):
            torch.cuda.synchronize()
        copy = Checkpoint(checkpoint.step, tensors, deepcopy(checkpoint.state), checkpoint.is_milestone)
        self._writing = self._pool.submit(self._write, copy)

    def check(self) -> None:
        """Raise the error of a checkpoint that could not be written, without waiting for one that is being written."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            TrainingDiverged: a value of it is not finite, so it was not written.
            OSError: the disk is full or refuses.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _copied(self, part: str, name: str, tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        copy = self._copies.get((part, name))
        if copy is None:
            # In the same order in memory, which is the fastest. Only to pinned memory does a GPU copy without a detour.
            copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._copies[part, name] = copy
        # Only CUDA is waited for below.
        return copy.copy_(tensor, non_blocking=tensor.is_cuda)

    def _write(self, checkpoint: Checkpoint) -> None:
        check_finite((each for named in checkpoint.tensors.values() for each in named.values()), checkpoint.step)
        save_checkpoint(self._folder, checkpoint, self._keep)

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._pool.shutdown(wait=True)
        # What ended the block comes first: an error of the disk does not replace it.
        if error is None:
            self.wait()
