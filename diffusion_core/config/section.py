"""What the sections of params.yaml are made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
# What NumPy and PyTorch both take.
Seed = Annotated[int, Field(ge=0, lt=2**63)]


# Tells which class of a union a mapping stands for.
BY_KIND = Field(discriminator="kind")


class Section(BaseModel):
    """Base of every section: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
