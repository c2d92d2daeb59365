"""Trained models on disk: weights in `model.safetensors` and everything else in `model.json`, without pickle.

`model.json` has the arguments of `Unet` and `GaussianDiffusion`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from diffusion_core.choices import choose
from diffusion_core.documents import read_json
from diffusion_core.errors import UserError
from diffusion_core.files import sha256_of
from diffusion_core.lineage.model_files import DESCRIPTION, WEIGHTS
from diffusion_core.lineage.tensors import save_tensors
from diffusion_core.networks.unet import Unet
from diffusion_core.problems import hint
from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.process.learned_gaussian_diffusion import LearnedGaussianDiffusion
from diffusion_core.process.losses import LossChoice
from diffusion_core.process.schedules import ScheduleChoice
from diffusion_core.process.weightings import WeightingChoice

FORMAT = 1
# Limits of what is loaded, because a description can name any number.
MOST_TIMESTEPS = 10**6
LONGEST_SIDE = 2**14
# Classes that a message names.
MOST_SHOWN = 20
# What values of a wrong type or size raise where they are used.
WRONG_VALUES = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
CHOICES = {"beta_schedule": ScheduleChoice, "weighting": WeightingChoice, "loss": LossChoice}


@dataclass(frozen=True)
class TrainedModel:
    """A trained model and the class distribution of its training data.

    Attributes:
        diffusion: the process with its weights, in eval mode.
        class_counts: number of training images of each label; empty if the dataset has no classes.
        classes: the name of each label; empty if they have none.
    """

    diffusion: GaussianDiffusion
    class_counts: tuple[int, ...]
    classes: tuple[str, ...] = ()

    def labels(self, count: int) -> list[int] | None:
        """Return labels for `count` images in the training data's proportions, or None for a model without classes."""
        return None if self.diffusion.num_classes is None else proportional_labels(self.class_counts, count)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each label; its number where labels have no names."""
        return self.classes or tuple(map(str, range(self.diffusion.num_classes or 0)))

    def label(self, class_name: str) -> int:
        """Return the label of a class.

        Raises:
            UserError: the model has no such class.
        """
        names = self.class_names
        if class_name in names:
            return names.index(class_name)
        shown = f"it has {', '.join(names[:MOST_SHOWN])}" if names else "it has no classes"
        raise UserError(f"the model has no class {class_name!r}: {hint(class_name, names)}{shown}")


def proportional_labels(class_counts: Sequence[int], count: int) -> list[int]:
    """Return `count` labels in the proportions of `class_counts`, evenly distributed over the list.

    Label i does not depend on `count`, and classes of equal size alternate. Each label is the one with the largest
    deficit so far.
    """
    shares = np.asarray(class_counts, np.int64)
    deficits = np.zeros_like(shares)
    labels = []
    for _ in range(count):
        deficits += shares
        label = int(deficits.argmax())
        deficits[label] -= shares.sum()
        labels.append(label)
    return labels


def build_model(network: Mapping[str, Any], process: Mapping[str, Any]) -> GaussianDiffusion:
    """Build an untrained process from the arguments of `Unet` and `GaussianDiffusion`.

    As in JSON, `beta_schedule`, `weighting` and `loss` may be mappings with a `kind`, and `image_size` may be a list.
    `vb_loss_weight` is ignored unless the network has `learned_variance`.

    Args:
        network: arguments of `Unet`.
        process: arguments of `GaussianDiffusion`.

    Raises:
        ValueError: an argument is invalid.
    """
    options = dict(process)
    for argument, union in CHOICES.items():
        if isinstance(options.get(argument), Mapping):
            choice = dict(options[argument])
            options[argument] = choose(union, choice.pop("kind"), argument, **choice)
    model = Unet(**network)
    if network.get("learned_variance"):
        return LearnedGaussianDiffusion(model, **options)
    options.pop("vb_loss_weight", None)
    return GaussianDiffusion(model, **options)


def save_model(
    folder: Path,
    diffusion: GaussianDiffusion,
    network: Mapping[str, Any],
    process: Mapping[str, Any],
    dataset: Mapping[str, Any],
    parent: Mapping[str, str] | None = None,
) -> None:
    """Write the weights of `diffusion.model` and the arguments to build it again.

    Args:
        folder: an existing folder for both files.
        diffusion: the trained process.
        network: arguments of `Unet`.
        process: arguments of `GaussianDiffusion`.
        dataset: description of the training data as JSON values, including `class_counts`.
        parent: name, kind and digest of the model that the training began from, or None.

    Raises:
        ValueError: a weight is not finite.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in diffusion.model.state_dict().items()}
    check_finite(weights)
    save_tensors(weights, folder / WEIGHTS)
    content = {
        "format": FORMAT,
        "weights_sha256": sha256_of(folder / WEIGHTS),
        "network": network,
        "process": process,
        "dataset": dataset,
    }
    if parent is not None:
        content["parent"] = parent
    text = json.dumps(content, indent=2, default=_plain)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def load_model(folder: Path | str, device: torch.device | str = "cpu") -> TrainedModel:
    """Read the files of `save_model`.

    Raises:
        UserError: a file is missing or damaged, by the hash of the weights too; a weight is not finite; or the files do
            not fit each other.
    """
    folder = Path(folder)
    try:
        content = read_json(folder / DESCRIPTION)
        if content["format"] != FORMAT:
            raise UserError(
                f"{folder / DESCRIPTION} has format {content['format']}; this version reads {FORMAT}:"
                " train the model again"
            )
        # Models of version 0.1.0 have no hash.
        if content.get("weights_sha256") not in (None, sha256_of(folder / WEIGHTS)):
            raise ValueError(f"{WEIGHTS} is not the file that {DESCRIPTION} describes: its sha256 differs")
        _check_sizes(folder / WEIGHTS, content["network"], content["process"])
        diffusion = build_model(content["network"], content["process"])
        weights = load_file(folder / WEIGHTS)
        check_finite(weights)
        diffusion.model.load_state_dict(weights)
        class_counts = tuple(content["dataset"]["class_counts"])
        if not all(type(count) is int and count >= 0 for count in class_counts):
            raise ValueError("class_counts must be numbers of images")
        classes = tuple(content["dataset"].get("classes", ()))
        if not all(isinstance(name, str) for name in classes):
            raise ValueError("classes must be names")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: make it with `dvc repro train`") from None
    except (*WRONG_VALUES, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the model in {folder} cannot be loaded ({reason}): make it again with `dvc repro -f train`"
        ) from None
    return TrainedModel(diffusion.to(device).eval().requires_grad_(False), class_counts, classes)


def _check_sizes(file: Path, network: Mapping[str, Any], process: Mapping[str, Any]) -> None:
    """Compare a description with the names and shapes of the weights, before memory is used for what it describes.

    Raises:
        ValueError: the weights are of another network, or the process is too large.
    """
    with torch.device("meta"):
        described = {name: list(tensor.shape) for name, tensor in Unet(**network).state_dict().items()}
    with safe_open(file, "pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118 - not a dict
    different = sorted(name for name in {*described, *shapes} if described.get(name) != shapes.get(name))
    if different:
        raise ValueError(f"{DESCRIPTION} describes another network than {WEIGHTS} holds: {different[0]} differs")
    sides = process["image_size"]
    for name, value, most in (
        ("timesteps", process.get("timesteps", 0), MOST_TIMESTEPS),
        ("image_size", max(sides) if isinstance(sides, list) else sides, LONGEST_SIDE),
    ):
        if value > most:
            raise ValueError(f"{name} is {value}; it must be at most {most}")


def check_finite(weights: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError with the name of a weight that has values that are not finite."""
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} has values that are not finite")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{value!r} has no JSON form")
