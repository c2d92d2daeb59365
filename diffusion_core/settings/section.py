"""What the sections of params.yaml are made of."""

from typing import Annotated, Any, Union

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from diffusion_core.kinds import kinds

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
# What NumPy and PyTorch both take.
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class OneOf:
    """Marks a field whose value is one of a package's choices, named by its `kind`."""

    def __init__(self, package: str) -> None:
        self.package = package

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = tuple(kinds(self.package).values())
        return handler.generate_schema(Annotated[Union[choices], Field(discriminator="kind")])  # noqa: UP007


class Section(BaseModel):
    """Base of every section: frozen, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
