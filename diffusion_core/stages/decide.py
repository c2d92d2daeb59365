"""Make a decision of the gate again, from the registry alone."""

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.registry.champions import recorded_decision
from diffusion_core.registry.connection import answering, connect
from diffusion_core.registry.versions import find_named


def run(environment: Environment, version: int, as_json: bool) -> None:
    """Make the gate's decision on a version again from what the registry holds, print it, and compare.

    Raises:
        UserError: there is no such version, no decision was recorded, or the decision made again differs.
        Unavailable: the tracking store does not answer.
    """
    client = connect(environment, may_create=False)
    with answering(environment):
        found = find_named(client, environment.registered_model, str(version))
    recorded = recorded_decision(found)
    if recorded is None:
        raise UserError(
            f"version {version} has no decision with its grounds: name a version that `diffusion history` lists"
        )
    again = type(recorded).on(recorded.grounds)
    print(again.model_dump_json(indent=2) if as_json else f"decide: {again.sentence}")
    if again != recorded:
        raise UserError(f"the decision on version {version} made again differs from the recorded: {recorded.sentence}")
