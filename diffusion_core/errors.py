"""Errors that the user can correct."""

# How PyTorch, its libraries and the dynamic linker say that memory is too small; only PyTorch has a class for it.
NO_MEMORY = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "bad_alloc",
    "could not create a memory object",
    "could not create a primitive",
    "failed to map segment",
    "can't start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of the machine or device is too small."""
    if isinstance(error, RuntimeError | ImportError | OSError):
        return any(words in str(error) for words in NO_MEMORY)
    return isinstance(error, MemoryError)


class UserError(Exception):
    """An error that the user can correct; the message names the key, file or argument and the remedy.

    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class Unavailable(UserError):
    """A server does not answer; the same command may succeed later, so flows retry it."""

    # EX_TEMPFAIL in sysexits.h, a temporary failure.
    exit_code = 75
