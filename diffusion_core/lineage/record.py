"""Small JSON files that one stage leaves for another."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from diffusion_core.errors import UserError


class Record(BaseModel):
    """Base of a file's content: frozen, and nothing but its own keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def write(self, file: Path) -> None:
        """Write the file as JSON."""
        file.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path, stage: str) -> Self:
        """Read what `write` wrote.

        Raises:
            UserError: the file is missing or damaged; the message names `stage`, which makes it.
        """
        try:
            return cls.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{file} is missing: run the stage that makes it with `dvc repro {stage}`") from None
        except ValidationError:
            raise UserError(f"{file} is damaged: make it anew with `dvc repro --force --single-item {stage}`") from None
