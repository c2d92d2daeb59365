"""A registered version, ready to be sampled as the gate judged it."""

from dataclasses import dataclass

import torch

from diffusion_core.config.environment import Environment
from diffusion_core.lineage.sampling import Sampling, usual_sampling
from diffusion_core.lineage.saved_model import TrainedModel, load_model
from diffusion_core.registry.connection import answering, connect
from diffusion_core.registry.versions import downloaded, find_named, named_aliases, recorded_sample


@dataclass(frozen=True)
class Served:
    """A loaded version.

    Attributes:
        name: the registered model.
        version: the number of the version.
        model: the model.
        judged_by: sampler and guidance of the samples by which the gate judged it.
    """

    name: str
    version: str
    model: TrainedModel
    judged_by: Sampling


def version_now(environment: Environment, name: str, version: str) -> str:
    """Return the number of the version that a number or an alias names now.

    Raises:
        UserError: there is no such version.
        Unavailable: the tracking store does not answer.
    """
    client = connect(environment, may_create=False)
    with answering(environment):
        return str(find_named(client, name, version).version)


def load_served(environment: Environment, name: str, version: str, device: torch.device) -> Served:
    """Load a version, by its number or an alias.

    Raises:
        UserError: there is no such version, or its files are not those that were registered.
        Unavailable: the tracking store does not answer.
    """
    client = connect(environment, may_create=False)
    with answering(environment):
        found = find_named(client, name, version)
        with downloaded(found) as files:
            model = load_model(files, device)
    sample = recorded_sample(found)
    judged = None if sample is None else Sampling(sample.sampler, sample.guidance)
    return Served(name, str(found.version), model, judged or usual_sampling(model.diffusion.num_timesteps))


def aliases_by_version(environment: Environment, name: str) -> dict[str, list[str]]:
    """Return the aliases of each version of a registered model, newest first.

    Raises:
        Unavailable: the tracking store does not answer.
    """
    client = connect(environment, may_create=False)
    with answering(environment):
        return named_aliases(client, name)
