"""What a training is made of: its data, its network and process, and the folder of its checkpoints."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import TrainSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.errors import UserError
from diffusion_core.lineage.identity import Identity, flattened
from diffusion_core.stages.named import NamedModel
from diffusion_core.stages.paths import PREPARED, needs


@dataclass(frozen=True)
class Plan:
    """The data and options of a training.

    Attributes:
        dataset: the training images.
        network: arguments of `Unet`.
        process: arguments of `GaussianDiffusion`.
        params_digest: sha256 of the section `train` of params.yaml.
        identity: what determines the weights.
        folder: folder of the checkpoints, named by the identity.
        parent: the model whose weights it begins from, or None.
    """

    dataset: ImageDataset
    network: dict[str, Any]
    process: dict[str, Any]
    params_digest: str
    identity: Identity
    folder: Path
    parent: NamedModel | None


@dataclass(frozen=True)
class ShardData:
    """The prepared images as `TrainingData`.

    Attributes:
        dataset: the training images.
    """

    dataset: ImageDataset

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return images, uint8 (B, C, H, W), and labels, int64 (B,), or None."""
        which = indices.numpy()
        images = torch.from_numpy(self.dataset.images(which)).permute(0, 3, 1, 2)
        labels = self.dataset.labels
        return images, None if labels is None else torch.from_numpy(labels[which])

    def read_ahead(self, indices: Tensor) -> None:
        """Let the system begin to read the images at `indices` into its cache."""
        self.dataset.read_ahead(indices.numpy())


def make_plan(train: TrainSettings, environment: Environment, parent: NamedModel | None = None) -> Plan:
    """Return the plan of the training on data/prepared, from the weights of `parent` if there is one.

    Raises:
        UserError: data/prepared is missing, or the network does not fit its images.
    """
    dataset = ImageDataset.open(needs(PREPARED, "prepare"), "train")
    network, process = options(train, dataset)
    digest = hashlib.sha256(train.model_dump_json().encode()).hexdigest()
    begins = None if parent is None else parent.digest
    identity = Identity.of(dataset.info.digest, flattened(train.of_weights()), begins, torch.__version__)
    folder = environment.checkpoints / identity.digest[:16]
    return Plan(dataset, network, process, digest, identity, folder, parent)


def options(train: TrainSettings, dataset: ImageDataset) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of `Unet` and `GaussianDiffusion` for the dataset.

    Raises:
        UserError: the network does not fit the image size.
    """
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
