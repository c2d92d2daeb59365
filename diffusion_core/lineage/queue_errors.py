"""Why a queue for a tracking store cannot be sent. Other queues can."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusion_core.errors import Unavailable, UserError

# Errors after which the same call may succeed.
PASSES = (errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.EIO, errno.ETIMEDOUT)


class QueueError(UserError):
    """A queue cannot be sent."""


class DamagedQueue(QueueError):
    """A file of a queue is not one that `Outbox` wrote."""


class RefusedQueue(QueueError):
    """The store refuses an entry, and would refuse it again."""


class InaccessibleQueue(QueueError):
    """The disk refuses a file of a queue, which may be another user's."""


class UnreadableNow(InaccessibleQueue, Unavailable):
    """An error that passes, such as too many open files."""


@contextmanager
def accessing(folder: Path) -> Iterator[None]:
    """Convert an error of the disk in the block, which uses the queue in `folder`, to `InaccessibleQueue`."""
    try:
        yield
    except OSError as error:
        if error.errno in PASSES:
            raise UnreadableNow(
                f"what waits in {folder} cannot be read now ({error.strerror or error}): correct that, and run this"
                " again"
            ) from None
        raise InaccessibleQueue(
            f"the disk refuses {error.filename or folder} ({error.strerror}), so what waits in {folder} is not sent:"
            " make room or correct its rights"
        ) from None
