"""What a training is of: the dataset, the network and the process, and where just this training keeps checkpoints."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import TrainSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.errors import UserError
from diffusion_core.stages.paths import PREPARED, needs


@dataclass(frozen=True)
class Plan:
    """What is trained.

    Attributes:
        dataset: on what.
        network: the U-Net's arguments.
        process: the process's arguments.
        params_digest: of all settings.
        folder: of the checkpoints of just this.
    """

    dataset: ImageDataset
    network: dict[str, Any]
    process: dict[str, Any]
    params_digest: str
    folder: Path


def make_plan(train: TrainSettings, environment: Environment) -> Plan:
    """Return the plan for the images that are prepared.

    Raises:
        UserError: data/prepared is missing, or the network does not fit its images.
    """
    dataset = ImageDataset.open(needs(PREPARED, "prepare"), "train")
    network, process = options(train, dataset)
    digest = _digest(train.model_dump_json())
    folder = environment.checkpoints / _digest(f"{dataset.info.digest} {digest}")[:16]
    return Plan(dataset, network, process, digest, folder)


def options(train: TrainSettings, dataset: ImageDataset) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of the network and of the process, which must fit the dataset."""
    downsampling = 2 ** (len(train.network.dim_mults) - 1)
    height, width = dataset.info.image_size
    if height % downsampling or width % downsampling:
        raise UserError(
            f"the images in {PREPARED} are {height} x {width}; with {len(train.network.dim_mults)} levels in"
            f" train.network.dim_mults each side must be a multiple of {downsampling}: run `dvc repro prepare`"
        )
    classes = len(dataset.info.classes) if train.network.class_conditional else 0
    network = train.network.model_dump(exclude={"class_conditional"})
    network |= {"channels": dataset.info.channels, "num_classes": classes or None}
    process = train.process.model_dump(mode="json") | {"image_size": dataset.info.image_size}
    return network, process


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
