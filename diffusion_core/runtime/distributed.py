"""The processes that share a stage's work, from torchrun's environment variables.

The launcher sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT for each process. It is
`launch.py`, torchrun (which SLURM starts once per machine) or a Kubernetes training job. Without these variables there
is one process, and the functions here do nothing.
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

# How long ranks wait for a busy rank, for example during a preview. The end of a rank is detected at once.
PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Ranks:
    """The rank of this process and the number of processes.

    Attributes:
        index: rank of this process; only rank 0 writes files and uses MLflow.
        count: number of processes.
    """

    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is rank 0, which writes the results."""
        return self.index == 0

    def share(self, total: int) -> range:
        """Return this process's part of 0 .. total-1; the sizes of parts differ by at most one."""
        each, rest = divmod(total, self.count)
        start = self.index * each + min(self.index, rest)
        return range(start, start + each + (self.index < rest))

    def all_reduce_max(self, value: int) -> int:
        """Return the greatest `value` of all processes; all must call it. It does not wait for a device."""
        if self.count == 1:
            return value
        greatest = torch.tensor(value)
        dist.all_reduce(greatest, dist.ReduceOp.MAX)
        return int(greatest)

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """Return the mean of `value` over all processes, on its device; all must call it."""
        if self.count == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.count

    def gather(self, rows: Tensor, total: int) -> Tensor | None:
        """Return all rows, (total, ...), on the main rank and None on the others.

        Args:
            rows: the rows of this process's `share`, on the host.
            total: number of rows of all processes.
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
        """Return the `content` of the main rank on all ranks."""
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
        """Return the module in DistributedDataParallel, so that gradients are averaged over all processes."""
        if self.count == 1:
            return module
        # PyTorch warns about 1x1 kernels, although their memory layouts are equal.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        with warnings.catch_warnings():
            # The argument has a new name that older versions do not accept.
            warnings.simplefilter("ignore", FutureWarning)
            # The buffers are tables that are equal on all processes.
            return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)


def assert_same_on_all_ranks(what: str, ranks: Ranks) -> None:
    """Check that a text equals that of the main rank.

    Raises:
        UserError: the texts differ, so the processes would train on different data or parameters.
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
    """Return this process's rank on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_count() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def process_group(device: torch.device) -> Iterator[Ranks]:
    """Join the process group for the block, and yield this process's rank.

    If the block raises, the group is not destroyed, because that could wait forever. The other ranks detect the end of
    this process.
    """
    if not is_started():
        yield Ranks()
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield Ranks(dist.get_rank(), dist.get_world_size())
    dist.barrier()
    dist.destroy_process_group()
