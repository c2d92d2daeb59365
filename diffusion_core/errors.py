"""What the user can mend."""


class UserError(Exception):
    """A mistake of the user's, told in one sentence that names the key, file or argument and the remedy.

    The command line prints it without a traceback and leaves with `exit_code`.
    """

    exit_code = 2


class Unavailable(UserError):
    """A server that does not answer now: the same command may succeed later, and a flow tries it again."""

    # The system's code for a failure that passes, EX_TEMPFAIL in sysexits.h.
    exit_code = 75
