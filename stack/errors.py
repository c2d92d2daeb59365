"""What is in the way of the stack."""


class StackError(Exception):
    """What is in the way, in one sentence."""
