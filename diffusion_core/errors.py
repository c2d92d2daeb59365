"""Errors that the user can correct."""

# How PyTorch on a processor, its libraries and the dynamic linker say that memory is too small.
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
    # PyTorch's class for GPUs, which this module must not import.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    is_system = isinstance(error, RuntimeError | ImportError | OSError)
    return is_system and any(words in str(error) for words in NO_MEMORY)


class UserError(Exception):
    """An error that the user can correct; the message names the key, file or argument and the remedy.

    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class Unavailable(UserError):
    """A server does not answer; the same command may succeed later, so flows retry it."""

    # EX_TEMPFAIL in sysexits.h, a temporary failure.
    exit_code = 75
