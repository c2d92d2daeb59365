"""Look at the versions of a registered model in a browser."""

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.registry.served import numbers
from diffusion_core.serving.page import show


def run(environment: Environment, name: str | None, port: int) -> None:
    """Serve the gallery until INT or TERM.

    Args:
        environment: the environment.
        name: the registered model; by default the environment's.
        port: of the page.

    Raises:
        UserError: the model has no versions, or the port cannot be used.
        Unavailable: the tracking store does not answer.
    """
    model = name or environment.registered_model
    if not numbers(environment, model):
        raise UserError(
            f"{model} has no version in this store: publish one with `diffusion run`, or name another model"
        )
    show(environment, model, port)
