"""A trained model on disk: `model.safetensors` with the weights and `model.json` with all else, and no pickle.

The network's and the process's options in `model.json` are the arguments of `Unet` and `GaussianDiffusion`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from diffusion_core.choices import choose
from diffusion_core.errors import UserError
from diffusion_core.networks.unet import Unet
from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.process.learned_gaussian_diffusion import LearnedGaussianDiffusion
from diffusion_core.process.losses import LossChoice
from diffusion_core.process.schedules import ScheduleChoice
from diffusion_core.process.weightings import WeightingChoice

WEIGHTS = "model.safetensors"
DESCRIPTION = "model.json"
FORMAT = 1
CHOICES = {"beta_schedule": ScheduleChoice, "weighting": WeightingChoice, "loss": LossChoice}


@dataclass(frozen=True)
class TrainedModel:
    """A model, and what it takes to draw images like its training data from it.

    Attributes:
        diffusion: the process with its weights, in eval mode.
        class_counts: how many images of each label it was trained on; empty where the dataset has no classes.
    """

    diffusion: GaussianDiffusion
    class_counts: tuple[int, ...]

    def labels(self, count: int) -> list[int] | None:
        """Return labels for `count` images in the training data's proportions, or None for a model without classes."""
        return None if self.diffusion.num_classes is None else proportional_labels(self.class_counts, count)


def proportional_labels(class_counts: Sequence[int], count: int) -> list[int]:
    """Return `count` labels in the proportions of `class_counts`, as evenly spread as they can be.

    Label i does not depend on `count`; classes of equal size take turns. Each time the label comes that the images so
    far owe most (largest deficit first).
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

    `beta_schedule`, `weighting` and `loss` may be mappings with a `kind`, and `image_size` a list, as they are in
    JSON. `vb_loss_weight` is of use where the network has `learned_variance`, and only there.
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
) -> None:
    """Write the weights of `diffusion.model` and what is needed to build it again.

    Args:
        folder: exists; takes both files.
        diffusion: the trained process.
        network: arguments of `Unet`.
        process: arguments of `GaussianDiffusion`.
        dataset: what the model was trained on, as JSON; `class_counts` has its images by label.
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in diffusion.model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    content = {"format": FORMAT, "network": network, "process": process, "dataset": dataset}
    text = json.dumps(content, indent=2, default=_plain)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def load_model(folder: Path | str, device: torch.device | str = "cpu") -> TrainedModel:
    """Read what `save_model` wrote.

    Raises:
        UserError: a file is missing, damaged, or does not fit the other.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise UserError(
                f"{folder / DESCRIPTION} has format {content['format']}; this version reads {FORMAT}:"
                " train the model again"
            )
        diffusion = build_model(content["network"], content["process"])
        diffusion.model.load_state_dict(load_file(folder / WEIGHTS))
        class_counts = tuple(content["dataset"]["class_counts"])
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: make it with `dvc repro train`") from None
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the model in {folder} cannot be loaded ({reason}): make it anew with `dvc repro -f train`"
        ) from None
    return TrainedModel(diffusion.to(device).eval().requires_grad_(False), class_counts)


def model_digest(folder: Path) -> str:
    """Return what tells one trained model from another: a sha256 over its weights and its description."""
    digest = hashlib.sha256()
    for name in (WEIGHTS, DESCRIPTION):
        with (folder / name).open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{value!r} has no JSON form")
