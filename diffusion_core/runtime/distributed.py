"""The processes that share a stage's work, as torchrun's variables tell of them.

Whoever starts the processes, this project's own launcher (`launch.py`), torchrun (which SLURM starts once a machine) or
a Kubernetes training job, sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT for each of
them. Without these there is one process, and everything here does nothing.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diffusion_core.errors import UserError

# How long ranks wait for one that is busy, with a preview say; one that has died is noticed at once.
PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """This process among those that share its work.

    Attributes:
        index: its number; 0 alone writes files and speaks to MLflow.
        count: how many processes there are.
    """

    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the results."""
        return self.index == 0

    def share(self, total: int) -> range:
        """Return this process's part of 0 .. total-1: equal parts, of which the first may have one more."""
        each, rest = divmod(total, self.count)
        start = self.index * each + min(self.index, rest)
        return range(start, start + each + (self.index < rest))

    def all_reduce_max(self, value: int) -> int:
        """Return the greatest value that any process gave; all must call it, and none waits for its device."""
        if self.count == 1:
            return value
        greatest = torch.tensor(value)
        dist.all_reduce(greatest, dist.ReduceOp.MAX)
        return int(greatest)

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """Return the mean of the tensors that the processes give, on their device."""
        if self.count == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.count

    def gather(self, rows: Tensor, total: int) -> Tensor | None:
        """Return all rows, (total, ...), on the first process and None on the others.

        Args:
            rows: those of this process's `share`, on the host.
            total: how many there are of all.
        """
        if self.count == 1:
            return rows
        longest = len(Ranks(0, self.count).share(total))
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.count)] if self.is_main else None
        dist.gather(padded, parts)
        if parts is None:
            return None
        return torch.cat([part[: len(Ranks(i, self.count).share(total))] for i, part in enumerate(parts)])

    def broadcast(self, content: bytes) -> bytes:
        """Return the first process's bytes; what the others give does not matter."""
        if self.count == 1:
            return content
        size = torch.tensor(len(content))
        dist.broadcast(size, 0)
        buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8) if self.is_main and content else None
        if buffer is None:
            buffer = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(buffer, 0)
        return bytes(buffer.numpy())

    def ddp(self, module: nn.Module) -> nn.Module:
        """Return a module that is called like this one, and whose gradients are the means over all processes."""
        if self.count == 1:
            return module
        # So it says of 1x1 kernels, whose layouts differ in name alone.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        with warnings.catch_warnings():
            # That the argument has a new name, which older versions do not know.
            warnings.simplefilter("ignore", FutureWarning)
            # The buffers are tables that all processes have alike.
            return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)


def assert_same_on_all_ranks(what: str, ranks: Ranks) -> None:
    """Compare a text with the first process's.

    Raises:
        UserError: it is another, so the processes would train different things.
    """
    if ranks.broadcast(what.encode()).decode() != what:
        raise UserError(
            f"process {ranks.index} has other data, parameters or precision than the first: bring data/prepared and"
            " params.yaml of all machines to one state, and set DIFFUSION_PRECISION where their processors differ"
        )


def is_started() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def local_rank() -> int:
    """Return this process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_count() -> int:
    """Return how many processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def process_group(device: torch.device) -> Iterator[Ranks]:
    """Join the processes for the block.

    When the block raises, the group is left as it is: the others find out by the end of this process, and taking
    leave of those that wait for it could last for ever.
    """
    if not is_started():
        yield Ranks()
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield Ranks(dist.get_rank(), dist.get_world_size())
    dist.barrier()
    dist.destroy_process_group()
