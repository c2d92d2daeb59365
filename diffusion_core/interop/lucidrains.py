"""Checkpoints of lucidrains/denoising-diffusion-pytorch 2.x: of its `Trainer`, its `GaussianDiffusion` or its `Unet`.

Only weights are read; a pickle with anything else is refused.
"""

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_core.errors import UserError
from diffusion_core.interop.inference import State, network_options, process_options
from diffusion_core.networks.unet import Unet

# Maximum number of keys of each list in an error message.
NAMED = 40
# Parts of names that PyTorch adds: of DataParallel and DistributedDataParallel, and of torch.compile.
WRAPPERS = {"module", "_orig_mod"}


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        network: arguments of `Unet`, inferred from the shapes.
        process: arguments of `GaussianDiffusion` that the tables determine.
        has_tables: whether the file has tables; if so, a missing objective in `process` is an unknown one.
        online: the trained weights by name.
        ema: the EMA weights, used for sampling; None if the file has none.
        step: number of training steps; None if the file does not have it.
    """

    network: dict[str, Any]
    process: dict[str, Any]
    has_tables: bool
    online: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    step: int | None


def read_checkpoint(file: Path) -> Checkpoint:
    """Read a checkpoint and check that its weights fit `Unet`.

    Raises:
        UserError: the file is missing, has more than weights, or its weights do not fit; the message then lists the
            differences.
    """
    content = _load(file)
    trainer = isinstance(content.get("model"), Mapping)
    whole = _weights(file, content["model"] if trainer else content)
    average = None
    if trainer and isinstance(content.get("ema"), Mapping):
        average = _below("ema_model.", _weights(file, content["ema"]))
    online = _below("model.", whole) or dict(whole)
    network = _fitting_options(file, online)
    ema = None if average is None else _below("model.", average) or average
    if ema is not None:
        _check_fit(file, network, ema)
    step = content.get("step") if trainer else None
    try:
        process = process_options(whole)
    except ValueError as error:
        raise UserError(f"{file} has tables that are none: {error}") from None
    return Checkpoint(network, process, "betas" in whole, online, ema, step if isinstance(step, int) else None)


def _load(file: Path) -> Mapping[str, Any]:
    try:
        _check_archive(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{file} is missing: name a checkpoint, model-100.pt say") from None
    except pickle.UnpicklingError:
        # PyTorch's message recommends to load the file with arbitrary code.
        raise UserError(
            f"{file} is not a checkpoint of weights alone (it holds other objects, or is not a pickle):"
            " name a file of denoising-diffusion-pytorch"
        ) from None
    except Exception as error:  # an unpickler raises nearly any exception for an invalid file
        reason = str(error).strip().partition("\n")[0] or "it ends too soon"
        raise UserError(
            f"{file} is not a checkpoint of weights alone ({reason}): name a file of denoising-diffusion-pytorch"
        ) from None
    if not isinstance(content, Mapping) or not any(isinstance(each, Tensor | Mapping) for each in content.values()):
        raise UserError(f"{file} holds no weights by name: name a file of denoising-diffusion-pytorch")
    return content


def _check_archive(file: Path) -> None:
    """Check that an archive takes no more memory than its file; `torch.save` compresses nothing.

    Raises:
        ValueError: it is compressed, or its entries overlap.
    """
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is compressed")
    if sum(entry.file_size for entry in entries) > file.stat().st_size:
        raise ValueError("its entries are larger than the file")


def _weights(file: Path, state: Mapping[Any, Any]) -> State:
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{file} has {name!r} among its weights, which is not a tensor with a name: it does not fit"
            )
        if value.layout != torch.strided or value.nbytes > value.untyped_storage().nbytes():
            raise UserError(f"{file} has {name}, which is larger than its data: name another checkpoint")
    unwrapped = {".".join(part for part in name.split(".") if part not in WRAPPERS): name for name in state}
    if len(unwrapped) < len(state):
        raise UserError(
            f"{file} has weights with and without {' or '.join(sorted(WRAPPERS))} before them: keep one set"
        )
    return {name: state[wrapped] for name, wrapped in unwrapped.items()}


def _below(prefix: str, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights with names that begin with `prefix`, without the prefix."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _fitting_options(file: Path, state: State) -> dict[str, Any]:
    try:
        options = network_options(state)
    except KeyError as error:
        raise _refusal(file, {"it lacks": [str(error.args[0])], "it has": state}) from None
    except (ValueError, IndexError) as error:
        raise _refusal(file, {"it has": state}, str(error)) from None
    _check_fit(file, options, state)
    return options


def _check_fit(file: Path, options: Mapping[str, Any], state: State) -> None:
    with torch.device("meta"):
        try:
            wanted = Unet(**options).state_dict()
        except ValueError as error:
            raise _refusal(file, {"it has": state}, str(error)) from None
    differences = {
        "it lacks": wanted.keys() - state.keys(),
        "it has besides": state.keys() - wanted.keys(),
        "of another shape are": [
            name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape
        ],
    }
    if any(differences.values()):
        raise _refusal(file, differences)


def _refusal(file: Path, differences: Mapping[str, Iterable[str]], reason: str = "") -> UserError:
    parts = [reason] if reason else []
    for what, names in differences.items():
        listed = sorted(names)
        more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
        if listed:
            parts.append(f"{what} {', '.join(listed[:NAMED])}{more}")
    return UserError(f"{file} does not fit the Unet of denoising-diffusion-pytorch 2.x: {'; '.join(parts)}")
