"""The model whose weights a training begins from (`train.from`), as a checkpoint of step 0."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import TrainSettings
from diffusion_core.documents import read_json
from diffusion_core.errors import Unavailable, UserError
from diffusion_core.lineage.model_files import DESCRIPTION
from diffusion_core.lineage.saved_model import load_model
from diffusion_core.networks.unet import Unet
from diffusion_core.process.gaussian_diffusion import GaussianDiffusion
from diffusion_core.stages.named import NamedModel, find_model
from diffusion_core.stages.paths import MODELS, PREPARED
from diffusion_core.stages.plan import Plan
from diffusion_core.training.checkpoint import Checkpoint
from diffusion_core.training.trainer import Trainer

# Arguments of `Unet` that change neither the names and shapes of weights nor what they compute.
FREE = {"dropout", "cond_drop_prob", "flash_attn"}
# What decides these, which are not keys of `train.network`.
DECIDED_BY = {
    "channels": f"the number of channels of {PREPARED}",
    "num_classes": f"the number of classes of {PREPARED}, which train.network.class_conditional uses,",
    "init_dim": "the width of the first convolution",
}


def find_parent(train: TrainSettings, environment: Environment) -> NamedModel | None:
    """Return the model that `train.from` names, or None if it names none.

    Raises:
        UserError: there is no such model, or it is the one that this training replaces.
        Unavailable: the tracking store does not answer.
    """
    if train.parent is None:
        return None
    try:
        parent = find_model(environment, train.parent)
    except Unavailable:
        raise
    except UserError as error:
        raise UserError(f"train.from is {train.parent}: {error}") from None
    if parent.kind == "folder" and Path(train.parent).expanduser().resolve() == MODELS.resolve():
        raise UserError(f"train.from is {train.parent}, which this training replaces: copy it, or name a version")
    return parent


def first_checkpoint(plan: Plan, trainer: Trainer) -> Checkpoint | None:
    """Return the weights of the plan's parent as a checkpoint of step 0, whose quality is to be shown, or None.

    Raises:
        UserError: its files cannot be loaded, or its network or process is another one than the training's.
        Unavailable: the tracking store does not answer.
    """
    if plan.parent is None:
        return None
    with plan.parent.files() as folder:
        model = load_model(folder)
        network = read_json(folder / DESCRIPTION)["network"]
    differences = [*_of_networks(plan.network, network), *_of_processes(trainer.diffusion, model.diffusion)]
    if differences:
        raise UserError(
            f"train.from is {plan.parent.name}, which does not fit: {'; '.join(differences)}: change these, or name"
            " another model"
        )
    print(f"train: begins from the weights of {plan.parent.name}", flush=True)
    _report_classes(plan, model.classes)
    weights = dict(model.diffusion.model.state_dict())
    tensors = {**trainer.tensors(), "model": weights, "ema": weights}
    return Checkpoint(0, tensors, {"validation_due": True, "preview_due": True})


def _of_networks(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    one, other = _whole(ours), _whole(theirs)
    return [
        f"{DECIDED_BY.get(name, f'train.network.{name}')} is {one[name]} here and {other[name]} there"
        for name in one
        if name not in FREE and one[name] != other[name]
    ]


def _whole(network: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of `Unet` in one form, with a value for each level."""
    defaults = {name: each.default for name, each in inspect.signature(Unet).parameters.items()}
    options = defaults | {name: list(each) if isinstance(each, tuple) else each for name, each in network.items()}
    levels = len(options["dim_mults"])
    if options["init_dim"] == options["dim"]:
        options["init_dim"] = None
    if options["full_attn"] is None:
        options["full_attn"] = [False] * (levels - 1) + [True]
    for name in ("full_attn", "attn_heads", "attn_dim_head"):
        if not isinstance(options[name], list):
            options[name] = [options[name]] * levels
    return options


def _of_processes(ours: GaussianDiffusion, theirs: GaussianDiffusion) -> list[str]:
    """Return how the meaning of the network's input and output differs; how it is weighted may differ."""
    names = {"objective": "train.process.objective", "num_timesteps": "train.process.timesteps"}
    found = [
        f"{key} is {getattr(ours, name)} here and {getattr(theirs, name)} there"
        for name, key in names.items()
        if getattr(ours, name) != getattr(theirs, name)
    ]
    one, other = ours.betas.cpu(), theirs.betas
    # As where a schedule is inferred from the tables of a checkpoint.
    if len(one) == len(other) and not torch.allclose(one, other, rtol=1e-4, atol=1e-9):
        found.append(
            "the noise of train.process.beta_schedule and zero_terminal_snr differs: at the middle timestep alpha_bar"
            f" is {_middle(ours):.3g} here and {_middle(theirs):.3g} there"
        )
    if ours.auto_normalize != theirs.auto_normalize:
        found.append(f"auto_normalize is {ours.auto_normalize} here and {theirs.auto_normalize} there")
    return found


def _middle(diffusion: GaussianDiffusion) -> float:
    return float(diffusion.alphas_cumprod[diffusion.num_timesteps // 2])


def _report_classes(plan: Plan, classes: tuple[str, ...]) -> None:
    """Say where a label has another name than it had."""
    renamed = [
        f"{label} was {before} and is {now}"
        for label, (before, now) in enumerate(zip(classes, plan.dataset.info.classes, strict=False))
        if before != now
    ]
    if renamed and plan.network["num_classes"]:
        print(f"train: labels of {PREPARED} mean other classes than there: {', '.join(renamed)}", flush=True)
