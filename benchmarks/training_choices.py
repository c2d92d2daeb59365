"""The effect of objective, self-conditioning and min-SNR on samples, for equal training budgets.

    python -m benchmarks.training_choices            # needs data/prepared and data/reference: `make demo` first

Trains the model of params.yaml with every combination and three seeds, samples and measures it as the pipeline does,
and writes benchmarks/training_choices.json. Completed runs are not repeated, so the command can be interrupted and
started again.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tqdm import tqdm

from diffusion_core.config.environment import Environment
from diffusion_core.config.params import load_settings
from diffusion_core.config.settings import Settings, TrainSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.lineage.saved_model import TrainedModel, build_model
from diffusion_core.metrics.estimate import flat
from diffusion_core.randomness import derive_seed
from diffusion_core.stages.evaluate import open_evaluator
from diffusion_core.stages.paths import PREPARED
from diffusion_core.stages.plan import ShardData, options
from diffusion_core.stages.sample import sample_model
from diffusion_core.training.trainer import Trainer

RESULTS = Path("benchmarks/training_choices.json")
SEEDS = (0, 1, 2)
FIGURES = ("frechet", "precision", "recall", "memorisation")
OBJECTIVES = ("pred_noise", "pred_x0", "pred_v")
WEIGHTINGS: tuple[dict[str, Any], ...] = ({"kind": "snr"}, {"kind": "min_snr", "gamma": 5.0})


def choices() -> Iterator[dict[str, Any]]:
    """Yield every combination, ordered by seed."""
    for seed, objective, self_condition, weighting in product(SEEDS, OBJECTIVES, (False, True), WEIGHTINGS):
        yield {
            "objective": objective,
            "self_condition": self_condition,
            "weighting": weighting["kind"],
            "seed": seed,
        }


def measure(settings: Settings, choice: dict[str, Any]) -> dict[str, float]:
    """Train with a choice and return the metrics of its samples."""
    train = chosen(settings.train, choice)
    dataset = ImageDataset.open(PREPARED, "train")
    network, process = options(train, dataset)
    torch.manual_seed(derive_seed(train.seed, "weights"))
    trainer = Trainer(build_model(network, process), ShardData(dataset), **train.of_trainer())
    for _ in trainer.steps():
        pass
    model = TrainedModel(trainer.ema.module, dataset.class_counts)
    images, _ = sample_model(model, settings.sample, Environment())
    evaluated = open_evaluator(settings.evaluate, Environment(device="cpu"))[1].evaluate(images)
    return evaluated.counts | flat(evaluated.estimates)


def chosen(train: TrainSettings, choice: dict[str, Any]) -> TrainSettings:
    """Return the section `train` with the options of a choice."""
    content = train.model_dump(mode="json")
    content["seed"] = choice["seed"]
    content["network"]["self_condition"] = choice["self_condition"]
    content["process"]["objective"] = choice["objective"]
    content["process"]["weighting"] = next(each for each in WEIGHTINGS if each["kind"] == choice["weighting"])
    return TrainSettings.model_validate(content)


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Return the results as a Markdown table: mean over the seeds (minimum to maximum)."""
    lines = [
        "| objective | self-conditioning | weighting | " + " | ".join(FIGURES) + " |",
        "|---" * (3 + len(FIGURES)) + "|",
    ]
    by_choice: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for run in runs:
        choice = run["choice"]
        named = (choice["objective"], "on" if choice["self_condition"] else "off", choice["weighting"])
        by_choice.setdefault(named, []).append(run["figures"])
    for named, figures in sorted(by_choice.items(), key=lambda item: OBJECTIVES.index(item[0][0])):
        cells = []
        for name in FIGURES:
            values = [each[name] for each in figures]
            cells.append(f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})")
        lines.append("| " + " | ".join((*named, *cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure the combinations that have no results yet, and print the table."""
    settings = load_settings()
    runs = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"] if RESULTS.exists() else []
    done = [run["choice"] for run in runs]
    for choice in tqdm([each for each in choices() if each not in done], unit="run"):
        runs.append({"choice": choice, "figures": measure(settings, choice)})
        content = {"images": settings.train.images, "torch": torch.__version__, "runs": runs}
        RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    main()
