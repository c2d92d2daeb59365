"""How people name a registered version."""

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError


def registered_name(environment: Environment, name: str) -> tuple[str, str]:
    """Return the registered model and the number or alias of a version that `name` means.

    Raises:
        UserError: a part is empty.
    """
    for mark in "@/":
        model, found, version = name.rpartition(mark)
        if found:
            if not (model and version):
                raise UserError(f"{name!r} names no version: write NAME@ALIAS, NAME/NUMBER, or an alias or a number")
            return model, version
    return environment.registered_model, name
