"""The quality of each library's samples after equal training times."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.extractor import frechet_distance, train_extractor
from benchmarks.photographs import photographs, read_folder
from benchmarks.turns import PEERS, Part

STEPS = 50
# One size for sampling and for the error of the noise, because each size is compiled separately.
BATCH = 250
# The rest of a part's time is for starting, compiling, the extractor, and sampling.
MOST_SECONDS, SHARE = 120.0, 0.25
DIGITS_SIZE = 16
DIGITS = {
    "size": DIGITS_SIZE,
    "channels": 1,
    "dim": 32,
    "dim_mults": [1, 2],
    "batch": 64,
    "learning_rate": 1e-3,
    # The options with the least distance on the digits in docs/diffusion.md.
    "process": {"objective": "pred_x0", "min_snr_loss_weight": True},
    "ema_halflife_images": 5000,
}
DIGITS_SAMPLES = 2000


def quality(part: Part) -> dict[str, Any]:
    """Measure on photographs; on a CPU without a folder of photographs, on the digits, which train in two minutes."""
    return on_photographs(part) if part.plan.gpu or part.plan.images else on_digits(part)


def on_digits(part: Part, count: int = DIGITS_SAMPLES) -> dict[str, Any]:
    """Return the Fréchet distance of each library's samples, with the features of params.yaml's reference."""
    # Imported here, because a GPU machine may not have all of its dependencies.
    from benchmarks import digits

    images, reference = digits.training_digits(DIGITS_SIZE)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    figures, samples = _train(part, PEERS, DIGITS, pixels, count)
    distances = {
        name: digits.frechet_distance(each.permute(0, 2, 3, 1).numpy(), reference) for name, each in samples.items()
    }
    frechet = {name: distance for name, (distance, _) in distances.items()}
    return {"images": "digits", **figures, "frechet": frechet, "floor": distances["ours"][1]}


def on_photographs(part: Part, count: int = 30_000, extractor_steps: int = 2000) -> dict[str, Any]:
    """Return the Fréchet distance to unseen photographs, and the error of the predicted noise for them.

    Compared only with denoising-diffusion-pytorch: the error is comparable only for equal schedules, and that of
    diffusers differs. The floor is the distance of two sets of photographs, each as large as that of the samples.
    """
    setting = {**part.plan.networks[0], "learning_rate": 3e-4}
    folder, size = part.plan.images, setting["size"]
    images = photographs(count, size, seed=0) if folder is None else read_folder(folder, size, count)
    trained, for_extractor, real, others = _split(images)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    extractor = train_extractor(for_extractor, device, extractor_steps)
    figures, samples = _train(part, ("ours", "lucidrains"), setting, trained, len(real), unseen=real)
    features = extractor.features(real)
    return {
        "images": "synthetic photographs" if folder is None else f"photographs of {folder.name}",
        **figures,
        "extractor_accuracy": extractor.accuracy(real),
        "frechet": {name: frechet_distance(extractor.features(each), features) for name, each in samples.items()},
        "floor": frechet_distance(extractor.features(others), features),
    }


def _split(images: Tensor) -> tuple[Tensor, ...]:
    """Return training images, images for the extractor, and two sets of the number of samples.

    Raises:
        ValueError: there are fewer than 24 images.
    """
    twelfth = len(images) // 12
    if twelfth < 2:
        raise ValueError(f"there are {len(images)} photographs: give at least 24, better 30,000")
    if twelfth > BATCH:
        twelfth -= twelfth % BATCH
    return torch.split(images[: 12 * twelfth], [8 * twelfth, 2 * twelfth, twelfth, twelfth])


def _train(
    part: Part,
    peers: Sequence[str],
    setting: dict[str, Any],
    images: Tensor,
    count: int,
    unseen: Tensor | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Train each library for the same time and sample from it; return results and samples of each.

    The time begins after the first step, which compiles; `benchmarks.parts.first_step` measures that step.
    """
    seconds = min(MOST_SECONDS, SHARE * part.seconds)
    steps: dict[str, int] = {}
    errors: dict[str, float] = {}
    samples: dict[str, Tensor] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(images, folder / "images.pt")
        torch.save(unseen, folder / "unseen.pt")
        for peer in peers:
            with part.library(peer, {**setting, "images": str(folder / "images.pt")}) as worker:
                if worker is None:
                    continue
                worker("train", 1)
                steps[peer] = worker("train_for", seconds)["steps"]
                worker("sample_to", str(folder / "samples.pt"), count, BATCH, STEPS)
                samples[peer] = torch.load(folder / "samples.pt", weights_only=True)
                if unseen is not None:
                    errors[peer] = worker("noise_error", str(folder / "unseen.pt"), BATCH)["error"]
                print(f"quality: {peer} took {steps[peer]} steps in {seconds:.0f} s", flush=True)
    figures = {"setting": setting, "seconds": seconds, "samples": count, "steps": steps}
    return figures | ({"noise_error": errors} if unseen is not None else {}), samples
