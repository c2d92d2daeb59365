"""Compares samplers and spacings for few steps: quality of the samples by number of network evaluations.

    python -m benchmarks.sampling_choices            # needs the model and the reference of `make demo`

Samples and measures as the pipeline does, and writes benchmarks/sampling_choices.json.
"""

import json
from pathlib import Path
from typing import get_args

import torch
from tqdm import tqdm

from diffusion_core import DDIM, DDPM, DPMSolver, Heun
from diffusion_core.config.environment import Environment
from diffusion_core.config.params import load_settings
from diffusion_core.lineage.saved_model import load_model
from diffusion_core.metrics.estimate import flat
from diffusion_core.samplers.protocols import Sampler
from diffusion_core.samplers.spacing import Spacing
from diffusion_core.stages.evaluate import open_evaluator
from diffusion_core.stages.paths import MODELS
from diffusion_core.stages.sample import sample_model

RESULTS = Path("benchmarks/sampling_choices.json")
PASSES = (5, 10, 20, 50, 100)
FIGURES = ("frechet", "precision", "recall")


def samplers(passes: int) -> dict[str, Sampler]:
    """Return samplers by name, each with about `passes` network evaluations."""
    return {
        **{f"DDIM, {spacing}": DDIM(steps=passes, spacing=spacing) for spacing in get_args(Spacing)},
        "DDIM, eta 1": DDIM(steps=passes, eta=1.0),
        "DDPM": DDPM(steps=passes),
        "DPM-Solver++(2M), linspace": DPMSolver(steps=passes),
        "DPM-Solver++(2M), quadratic": DPMSolver(steps=passes, spacing="quadratic"),
        # Two network evaluations per step, except the last.
        "Heun": Heun(steps=(passes + 1) // 2),
    }


def main() -> None:
    """Measure every sampler with every number of network evaluations."""
    settings = load_settings()
    model = load_model(MODELS)
    _, evaluator = open_evaluator(settings.evaluate, Environment(device="cpu"))
    runs = []
    for passes in tqdm(PASSES):
        for name, sampler in samplers(passes).items():
            images, _ = sample_model(model, settings.sample.model_copy(update={"sampler": sampler}), Environment())
            figures = flat(evaluator.evaluate(images).estimates)
            kept = {figure: figures[figure] for figure in FIGURES}
            runs.append({"passes": passes, "sampler": name, "figures": kept})
    content = {"samples": settings.sample.count, "torch": torch.__version__, "runs": runs}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
