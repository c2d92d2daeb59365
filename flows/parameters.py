"""The parameters of the flow as types, which Prefect's pages make a form of."""

from typing import Annotated, Literal

from pydantic import Field

# A key of params.yaml and its value, as `dvc exp run --set-param` takes it; it can never look like an option.
Override = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*=.+$", examples=["train.seed=1"])]

# Where the dvc.lock of a run goes that was made in a checkout of its own: nowhere, onto the run's page, or as a commit
# to the branch `runs/<name of the run>` of the repository.
LockPolicy = Literal["none", "artifact", "branch"]
