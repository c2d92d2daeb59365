"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake of the user's, told in one sentence that names the key, file or argument and the remedy.

    The command line prints it without a traceback and leaves with exit code 2.
    """
