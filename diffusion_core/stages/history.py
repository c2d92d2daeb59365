"""Show who was the champion when, by which metrics and why."""

import json
from dataclasses import asdict

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.registry.champions import events
from diffusion_core.registry.connection import answering, connect
from diffusion_core.registry.versions import find_champion


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
        print(f"{event.time[:19].replace('T', ' ')} UTC  {event.sentence}")
    present = "there is no champion" if champion is None else f"version {champion.version} is the champion"
    print(f"history: {present} of {name}")
