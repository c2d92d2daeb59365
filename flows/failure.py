"""The error that stops a run."""


class StageFailed(Exception):
    """A stage failed; the message is its error in one sentence.

    Attributes:
        is_mistake: whether the user can correct the error.
        is_transient: whether the error is transient, so that the same stage may succeed later.
    """

    def __init__(self, sentence: str, is_mistake: bool = False, is_transient: bool = False) -> None:
        super().__init__(sentence)
        self.is_mistake = is_mistake
        self.is_transient = is_transient
