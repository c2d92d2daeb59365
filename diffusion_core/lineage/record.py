"""Small JSON files that one stage leaves for another; `models/run_info.json` is one of them."""

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


class RunInfo(Record):
    """`models/run_info.json`: the MLflow run of a model, and what it was made of; None where that is not known.

    It is an output of `train`, so a model that DVC restores from its cache leads back to the run that made it.
    """

    run_id: str
    dataset_md5: str | None
    dataset_digest: str
    git_commit: str | None
    git_dirty: bool | None
    params_digest: str
