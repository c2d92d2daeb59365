"""The reference of an evaluation: the feature extractor and the features of the real images.

It is computed once per dataset and extractor. Its digest is a hash of both: only evaluations with the same digest are
comparable.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError

from diffusion_core.config.settings import ReferenceSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.documents import read_json
from diffusion_core.errors import UserError
from diffusion_core.metrics.features import SMALLEST_IMAGE, FeatureNetwork, Features, Images, extract, spans
from diffusion_core.metrics.fitting import learn_classes, learn_contrast
from diffusion_core.progress import Progress
from diffusion_core.runtime.distributed import Ranks

# Two halves of three images: two are left without each, the minimum for a covariance.
FEWEST_IMAGES = 6

EXTRACTOR = "extractor.safetensors"
FEATURES = "features.safetensors"
DESCRIPTION = "reference.json"


@dataclass(frozen=True, eq=False)
class Reference:
    """The extractor and the features of every real image.

    Attributes:
        extractor: the feature network, in eval mode.
        train_features: features of the training images in the dataset's order, float32 (n, features).
        validation_features: features of the validation images, float32 (m, features).
        dataset_digest: digest of the dataset.
        settings: the section `reference` of params.yaml.
        quality: of the extractor: `validation_accuracy` with labels, `final_loss` without labels.
    """

    extractor: FeatureNetwork
    train_features: Features
    validation_features: Features
    dataset_digest: str
    settings: Mapping[str, Any]
    quality: Mapping[str, float]

    @cached_property
    def digest(self) -> str:
        """sha256 of the extractor's bytes and the dataset's digest."""
        return hashlib.sha256(self._extractor_bytes() + self.dataset_digest.encode()).hexdigest()

    def extract(
        self,
        images: Images,
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    ) -> Features:
        """Return the features of uint8 images, (n, H, W, C), as float32, (n, features); see `features.extract`."""
        return extract(self.extractor, images, ranks=ranks)

    def save(self, folder: Path) -> None:
        """Write the files of data/reference to `folder`, which must exist."""
        features = {"train": self.train_features, "validation": self.validation_features}
        files = {EXTRACTOR: self._extractor_bytes(), FEATURES: safetensors.numpy.save(features)}
        for name, content in files.items():
            (folder / name).write_bytes(content)
        description = {
            "digest": self.digest,
            "dataset_digest": self.dataset_digest,
            "network": {name: getattr(self.extractor, name) for name in ("image_size", "channels", "features")},
            "settings": dict(self.settings),
            "quality": dict(self.quality),
            "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Self:
        """Read the files of `save`.

        Raises:
            UserError: a file is missing or damaged.
        """
        with _reading(folder):
            description, contents = _contents(folder, EXTRACTOR, FEATURES)
            extractor = _network(description, contents[EXTRACTOR])
            features = safetensors.numpy.load(contents[FEATURES])
            for name in ("train", "validation"):
                if features[name].dtype != np.float32 or features[name].shape[1:] != (extractor.features,):
                    raise ValueError(f"{name} of {FEATURES} is {features[name].dtype} {features[name].shape}")
            if not isinstance(description["dataset_digest"], str):
                raise ValueError(f"dataset_digest of {DESCRIPTION} is not text")
            return cls(
                extractor=extractor.to(device).eval(),
                train_features=features["train"],
                validation_features=features["validation"],
                dataset_digest=description["dataset_digest"],
                settings=description["settings"],
                quality=description["quality"],
            )

    def _extractor_bytes(self) -> bytes:
        state = {name: tensor.cpu().contiguous() for name, tensor in self.extractor.state_dict().items()}
        return safetensors.torch.save(state)


def load_extractor(folder: Path) -> FeatureNetwork:
    """Read the extractor alone of the files of `Reference.save`, in eval mode.

    Raises:
        UserError: a file is missing or damaged.
    """
    with _reading(folder):
        description, contents = _contents(folder, EXTRACTOR)
        return _network(description, contents[EXTRACTOR]).eval()


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Say in one sentence what cannot be read in the block."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder} cannot be read ({error}): make it again with `dvc repro --single-item --force reference`"
        ) from error


def _contents(folder: Path, *names: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the description and the bytes of files, whose hashes it has."""
    description = read_json(folder / DESCRIPTION)
    contents = {name: (folder / name).read_bytes() for name in names}
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != description["sha256"][name]:
            raise ValueError(f"{name} is damaged")
    return description, contents


def _network(description: Mapping[str, Any], weights: bytes) -> FeatureNetwork:
    # The description takes no memory by itself; the tensors are as large as their file.
    with torch.device("meta"):
        extractor = FeatureNetwork(**description["network"])
    extractor.load_state_dict(safetensors.torch.load(weights), assign=True)
    return extractor


def fit_reference(
    train: ImageDataset,
    validation: ImageDataset,
    settings: ReferenceSettings,
    device: torch.device | str = "cpu",
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> Reference:
    """Train the extractor and compute the features of all real images.

    The extractor is trained with labels if there are at least two classes, else by contrastive learning. With several
    processes, the main rank trains and all compute features; the others return those of their share.

    The result depends only on the arguments, if the device adds in a fixed order as a CPU does. The caller's random
    state does not change.

    Args:
        train: the training split.
        validation: the validation split.
        settings: the section `reference` of params.yaml.
        device: the device of the extractor.
        ranks: the processes that share the work.

    Raises:
        UserError: the images are too small or too few, or training diverged.
    """
    info = train.info
    if min(info.image_size) < SMALLEST_IMAGE:
        raise UserError(
            f"prepare.image_size is {[*info.image_size]}: evaluation needs at least {SMALLEST_IMAGE} on each side"
        )
    if len(train) < FEWEST_IMAGES or len(validation) < FEWEST_IMAGES:
        raise UserError(
            f"the dataset has {len(train)} training and {len(validation)} validation images, and evaluation needs at"
            f" least {FEWEST_IMAGES} of each: add images or change prepare.validation_fraction"
        )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(settings.seed)
        extractor = FeatureNetwork(info.image_size, info.channels, settings.features).to(device)
        quality: dict[str, float] = {}
        if ranks.is_main and len(info.classes) >= 2:
            quality = learn_classes(extractor, train, validation, settings)
        elif ranks.is_main:
            quality = learn_contrast(extractor, train, settings)
    learned = {name: each.cpu().contiguous() for name, each in extractor.state_dict().items()}
    extractor.load_state_dict(safetensors.torch.load(ranks.broadcast(safetensors.torch.save(learned))))
    extractor.eval()
    of_train, of_validation = _features(extractor, train, ranks), _features(extractor, validation, ranks)
    if not (np.isfinite(of_train).all() and np.isfinite(of_validation).all()):
        raise UserError("the features of the real images are not finite: lower reference.learning_rate")
    return Reference(extractor, of_train, of_validation, info.digest, settings.model_dump(mode="json"), quality)


def _features(extractor: FeatureNetwork, dataset: ImageDataset, ranks: Ranks) -> Features:
    # In parts, because a dataset may be larger than memory.
    with Progress("features", len(dataset), "images", is_shown=ranks.is_main) as progress:
        parts = [
            extract(extractor, dataset.images(span), ranks=ranks, progress=progress)
            for span in spans(len(dataset), 4096)
        ]
    return np.concatenate(parts)
