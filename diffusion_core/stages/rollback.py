"""Move the alias `champion` back to an earlier version."""

from diffusion_core.config.environment import Environment
from diffusion_core.registry.champions import roll_back
from diffusion_core.registry.connection import answering, connect
from diffusion_core.registry.pages import describe_model


def run(environment: Environment, version: int | None) -> None:
    """Move the alias to `version`, by default to the champion before, and reject the version that it leaves.

    Raises:
        UserError: there is no such version or no champion before, or the files of the version cannot be read. The alias
            does not move.
        Unavailable: the tracking store does not answer.
    """
    client = connect(environment, may_create=False)
    with answering(environment):
        sentence = roll_back(client, environment.registered_model, version)
        describe_model(client, environment.registered_model)
    print(f"rollback: {sentence}")
