"""Load a model by what people call it: a folder, or a version of a registered model."""

from pathlib import Path

import torch

from diffusion_core.config.environment import Environment
from diffusion_core.errors import UserError
from diffusion_core.lineage.model_files import DESCRIPTION
from diffusion_core.lineage.saved_model import TrainedModel, load_model
from diffusion_core.registry.connection import answering, connect
from diffusion_core.registry.versions import downloaded, find_named
from diffusion_core.stages.version_names import registered_name


def load_named(environment: Environment, name: str, device: torch.device) -> TrainedModel:
    """Load a model.

    Args:
        environment: the environment, with the store and the registered model.
        name: a folder with model.safetensors and model.json; `NAME@ALIAS` or `NAME/NUMBER` of a registered model;
            or the alias or number of a version of the environment's.
        device: where it is loaded to.

    Raises:
        UserError: there is no such folder and no such version, or its files cannot be loaded.
        Unavailable: the tracking store does not answer.
    """
    folder = Path(name)
    if (folder / DESCRIPTION).is_file():
        return load_model(folder, device)
    if folder.is_dir():
        raise UserError(f"{folder} has no {DESCRIPTION}: name a folder that `train` or `diffusion import` wrote")
    model, version = registered_name(environment, name)
    client = connect(environment, may_create=False)
    with answering(environment), downloaded(find_named(client, model, version)) as files:
        return load_model(files, device)
