"""Import a checkpoint of denoising-diffusion-pytorch: a .pt file to a folder like models/."""

from pathlib import Path
from typing import Any

from diffusion_core.errors import UserError
from diffusion_core.files import replaced_files
from diffusion_core.interop.lucidrains import read_checkpoint
from diffusion_core.lineage.model_files import DESCRIPTION, WEIGHTS
from diffusion_core.lineage.saved_model import build_model, check_finite, save_model
from diffusion_core.lineage.tensors import save_tensors
from diffusion_core.stages.paths import RUN_INFO

ONLINE = "online.safetensors"
# The defaults of denoising-diffusion-pytorch.
USUAL: dict[str, Any] = {
    "timesteps": 1000,
    "objective": "pred_v",
    "beta_schedule": {"kind": "sigmoid"},
    "weighting": {"kind": "snr"},
}
# Use the value from the file.
AUTO = "auto"


def run(
    checkpoint: Path,
    out: Path,
    image_size: str,
    objective: str = AUTO,
    beta_schedule: str = AUTO,
    sinusoidal_pos_emb_theta: float = 10_000.0,
) -> None:
    """Write model.safetensors (EMA weights), online.safetensors and model.json, and print the inferred options.

    Args:
        checkpoint: a checkpoint of the package's `Trainer`, `GaussianDiffusion` or `Unet`.
        out: the folder for the three files; created if needed.
        image_size: "64" or "48x64" (height first); checkpoints do not include it.
        objective: overrides the inferred objective, or sets it if the file does not determine it.
        beta_schedule: sets the kind of schedule if the file does not determine it.
        sinusoidal_pos_emb_theta: of the network's time embedding; checkpoints do not include it.

    Raises:
        UserError: the file cannot be read or does not fit, a weight is not finite, or the options are invalid together.
    """
    found = read_checkpoint(checkpoint)
    given: dict[str, Any] = {}
    if objective != AUTO:
        given["objective"] = objective
    if beta_schedule != AUTO:
        given["beta_schedule"] = {"kind": beta_schedule}
    inferred = found.process
    if found.has_tables and "objective" not in inferred | given:
        raise UserError(f"{checkpoint} has tables of an objective that is not known here: give --objective")
    network = found.network | {"sinusoidal_pos_emb_theta": sinusoidal_pos_emb_theta}
    if "objective" in given and given["objective"] != inferred.get("objective"):
        # The weighting was inferred for another objective.
        inferred = {name: value for name, value in inferred.items() if name != "weighting"}
    process = USUAL | inferred | given | {"image_size": _size(image_size)}
    try:
        diffusion = build_model(network, process)
    except ValueError as error:
        raise UserError(f"{checkpoint} cannot be imported like this ({error}): give other options") from None
    if found.has_tables and given.get("beta_schedule", inferred["beta_schedule"]) != inferred["beta_schedule"]:
        raise UserError(
            f"--beta-schedule is {beta_schedule}, and the betas in {checkpoint} are"
            f" {_shown(inferred['beta_schedule'])}: leave it out"
        )
    diffusion.model.load_state_dict(found.online if found.ema is None else found.ema)
    with replaced_files([out / WEIGHTS, out / DESCRIPTION, out / ONLINE]) as temporary:
        try:
            save_model(temporary, diffusion, network, process, {"class_counts": []})
            check_finite(found.online)
        except ValueError as error:
            raise UserError(f"{checkpoint} cannot be imported ({error}): name a checkpoint before that") from None
        save_tensors(found.online, temporary / ONLINE)
    for line in _described(found.network, inferred, process, given, sinusoidal_pos_emb_theta):
        print(f"import: {line}")
    if (out / RUN_INFO.name).exists():
        print(f"import: {out} is where the stage train puts its model: `dvc repro` brings it back")
    step = "" if found.step is None else f" after {found.step} steps"
    weights = "the weights as trained (the file has no average)" if found.ema is None else "EMA weights"
    print(f"import: wrote {out / WEIGHTS} with {weights}{step}, {out / ONLINE} and {out / DESCRIPTION}")


def _size(text: str) -> tuple[int, int]:
    parts = text.split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"--image-size is {text}: give pixels, 64 say, or 48x64 for height x width")
    return int(parts[0]), int(parts[-1])


def _described(
    network: dict[str, Any], inferred: dict[str, Any], process: dict[str, Any], given: dict[str, Any], theta: float
) -> list[str]:
    """Return one line per option with its value and its source."""
    lines = ["network, by the shapes: " + ", ".join(f"{name}={value}" for name, value in network.items())]
    for name in USUAL:
        source = "as given" if name in given else "by the tables" if name in inferred else "not inferred: the usual"
        if name == "objective" and name in given and inferred.get(name) not in (None, given[name]):
            source += f", where the tables say {inferred[name]}"
        lines.append(f"{name}: {_shown(process[name])} ({source})")
    height, width = process["image_size"]
    return [
        *lines,
        f"image_size: {height} x {width} (no checkpoint has it: --image-size)",
        f"sinusoidal_pos_emb_theta: {theta:g} (no checkpoint has it: --sinusoidal-pos-emb-theta)",
    ]


def _shown(value: Any) -> str:
    """Return an option in words."""
    if not isinstance(value, dict):
        return str(value)
    if value["kind"] == "table":
        return f"a table of their own, {len(value['values'])} values"
    return " ".join(map(str, value.values()))
