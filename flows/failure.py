"""Why a run stops."""


class StageFailed(Exception):
    """A stage did not succeed; the message is the one sentence it left behind.

    Attributes:
        is_mistake: it was a mistake of the user's, who can mend it.
        may_pass: a server did not answer, and the same stage may succeed later.
    """

    def __init__(self, sentence: str, is_mistake: bool = False, may_pass: bool = False) -> None:
        super().__init__(sentence)
        self.is_mistake = is_mistake
        self.may_pass = may_pass
