"""Errors that the user can correct."""


class UserError(Exception):
    """An error that the user can correct; the message names the key, file or argument and the remedy.

    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 2


class Unavailable(UserError):
    """A server does not answer; the same command may succeed later, so flows retry it."""

    # EX_TEMPFAIL in sysexits.h, a temporary failure.
    exit_code = 75
