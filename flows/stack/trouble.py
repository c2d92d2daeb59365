"""What is in the way of the stack."""


class StackTrouble(Exception):
    """What is in the way, in one sentence."""
