"""Small JSON files that one stage writes for another, for example `models/run_info.json`."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from diffusion_core.documents import read_small
from diffusion_core.errors import UserError
from diffusion_core.files import naming


class Record(BaseModel):
    """Base class of the content of such a file: frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def write(self, file: Path) -> None:
        """Write the file as JSON."""
        with naming(file):
            file.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: Path, stage: str) -> Self:
        """Read the file of `write`.

        Raises:
            UserError: the file is missing or damaged; the message names `stage`, which makes it.
        """
        try:
            return cls.model_validate_json(read_small(file))
        except FileNotFoundError:
            raise UserError(f"{file} is missing: run the stage that makes it with `dvc repro {stage}`") from None
        except ValueError:
            raise UserError(
                f"{file} is damaged: make it again with `dvc repro --force --single-item {stage}`"
            ) from None


class RunInfo(Record):
    """`models/run_info.json`: the MLflow run and the provenance of a model; unknown values are None.

    It is an output of `train`, so a model restored from DVC's cache has the key of its original run.

    Attributes:
        run_key: the tag `run_key` of the MLflow run that trained the model. The run may be made later than the model.
        dataset_md5: DVC's hash of the dataset.
        dataset_digest: sha256 of the dataset's content.
        git_commit: hash of the commit.
        git_dirty: whether the checkout differed from the commit.
        params_digest: sha256 of the section `train` of params.yaml.
        model_images: images after which the weights were those of the model; None for models of former versions.
        trained_images: images after which the training ended, in its time; None for models of former versions.
    """

    run_key: str
    dataset_md5: str | None
    dataset_digest: str
    git_commit: str | None
    git_dirty: bool | None
    params_digest: str
    model_images: int | None = None
    trained_images: int | None = None
