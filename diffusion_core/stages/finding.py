"""What `diffusion verify` has hashed, and what it has found."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from diffusion_core.counts import count_of
from diffusion_core.errors import UserError

REPAIR = "say `diffusion verify --repair`"


@dataclass(frozen=True)
class Finding:
    """Something that has rotted, or could not be looked at.

    Attributes:
        what: the file, folder or version.
        problem: what is wrong with it.
        remedy: what helps.
        is_repaired: whether it is whole again.
    """

    what: str
    problem: str
    remedy: str
    is_repaired: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.problem}; " + ("repaired" if self.is_repaired else self.remedy)


class Hashed:
    """The number and bytes of the files that were hashed, by what they belong to."""

    def __init__(self) -> None:
        self.sizes: dict[str, list[int]] = {}

    def add(self, what: str, files: Iterable[Path]) -> None:
        """Count files; those that are missing were not hashed."""
        self.sizes.setdefault(what, []).extend(file.stat().st_size for file in files if file.is_file())

    def __str__(self) -> str:
        each = (f"{what} ({count_of(len(sizes), 'file')}, {sum(sizes):,} bytes)" for what, sizes in self.sizes.items())
        return ", ".join(each) or "nothing"


def parts(error: UserError | OSError) -> tuple[str, str]:
    """Return the problem that an error's sentence names, and the remedy behind its last colon."""
    problem, _, remedy = str(error).rpartition(": ")
    if isinstance(error, OSError) or not problem:
        return str(error), "correct that, and run this again"
    return problem, remedy
