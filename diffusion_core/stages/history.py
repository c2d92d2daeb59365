"""Show who was the champion when, by which metrics and why."""

import json
from dataclasses import asdict

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.registry.champions import events, recorded_decision
from diffusion_core.registry.connection import answering, connect
from diffusion_core.registry.versions import find_champion, find_named


def run(environment: Environment, as_json: bool) -> None:
    """Print each decision of the gate and each rollback, the oldest first, and the present champion.

    Raises:
        UserError: no version was published and promoted or refused yet.
        Unavailable: the tracking store does not answer.
    """
    client = connect(environment, may_create=False)
    name = environment.registered_model
    with answering(environment):
        found = events(client, name)
        champion = find_champion(client, name)
    if not found and champion is None:
        raise UserError(f"{name} has no history yet: publish a model and promote it, with `diffusion run`")
    if as_json:
        now = None if champion is None else int(champion.version)
        print(json.dumps({"model": name, "champion": now, "events": [asdict(each) for each in found]}, indent=2))
        return
    for event in found:
        print(f"{event.time[:19].replace('T', ' ')} UTC  version {event.version}: {event.sentence}")
    print(f"history: {'there is no champion' if champion is None else f'version {champion.version} is the champion'}")


def decide(environment: Environment, version: int) -> None:
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
    print(again.model_dump_json(indent=2))
    if again != recorded:
        raise UserError(f"the decision on version {version} made again differs from the recorded: {recorded.sentence}")
