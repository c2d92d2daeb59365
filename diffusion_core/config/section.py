"""The base class and common types of the sections of params.yaml."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
# Valid for both NumPy and PyTorch.
Seed = Annotated[int, Field(ge=0, lt=2**63)]


# Selects the class of a union by the key `kind`.
BY_KIND = Field(discriminator="kind")


class Section(BaseModel):
    """Base class of all sections: frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
