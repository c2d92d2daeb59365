"""`models/run_info.json`: which MLflow run a model came from.

It is an output of `train`, so a model that DVC restores from its cache leads back to the run that made it.
"""

from diffusion_core.lineage.record import Record


class RunInfo(Record):
    """The run, and what it was made of; a field is None where it is not known (no DVC, no git)."""

    run_id: str
    dataset_md5: str | None
    dataset_digest: str
    git_commit: str | None
    git_dirty: bool | None
    params_digest: str
