"""`models/run_info.json`: which MLflow run a model came from.

It is an output of `train`, so a model that DVC restores from its cache leads back to the run that made it.
"""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from diffusion_core.errors import UserError


class RunInfo(BaseModel):
    """The run, and what it was made of; a field is None where it is not known (no DVC, no git)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_id: str
    dataset_md5: str | None
    dataset_digest: str
    git_commit: str | None
    git_dirty: bool | None
    params_digest: str

    def write(self, file: Path) -> None:
        """Write the file as JSON."""
        file.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read what `write` wrote.

        Raises:
            UserError: the content is not a run's.
        """
        try:
            return cls.model_validate_json(file.read_bytes())
        except ValidationError:
            raise UserError(f"{file} is damaged: make it anew with `dvc repro --force --single-item train`") from None
