"""Compute the metrics of the samples against the real images: metrics/evaluate.json and plots/."""

import json

import numpy as np

from diffusion_core.config.environment import Environment
from diffusion_core.config.settings import EvaluateSettings
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.data.shards import read_array
from diffusion_core.errors import UserError
from diffusion_core.files import replaced_files
from diffusion_core.lineage.evaluation import Evaluation, FiguresOrigin, evaluation_key
from diffusion_core.lineage.samples import SamplesOrigin
from diffusion_core.metrics.evaluation import Evaluator
from diffusion_core.metrics.features import Images
from diffusion_core.metrics.neighbours import nearest
from diffusion_core.metrics.reference import Reference
from diffusion_core.metrics.views import domain_view, other_views
from diffusion_core.pictures import save
from diffusion_core.plots import distances, nearest_images, real_and_generated
from diffusion_core.runtime.device import choose_device
from diffusion_core.runtime.distributed import Ranks
from diffusion_core.stages.cost import Cost, record_cost
from diffusion_core.stages.paths import (
    METRICS,
    METRICS_ORIGIN,
    PLOTS,
    PREPARED,
    REFERENCE,
    SAMPLES,
    SAMPLES_ORIGIN,
    needs,
)

SHOWN = 64
SHOWN_NEAREST = 16
NEIGHBOURS = 5


def run(
    evaluate: EvaluateSettings,
    environment: Environment,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> None:
    """Write the metrics, their origin and the plots.

    Raises:
        UserError: an input is missing or damaged, or samples, reference and dataset do not fit each other.
    """
    cost = Cost(choose_device(environment.device), ranks.count)
    reference, evaluator = open_evaluator(evaluate, environment, ranks)
    dataset = evaluator.train
    samples = _read_samples((*dataset.info.image_size, dataset.info.channels))
    origin = SamplesOrigin.read(SAMPLES_ORIGIN, "sample")
    features = evaluator.extract(samples, ranks)
    if not ranks.is_main:
        return
    evaluated = evaluator.measure(samples, features)

    near = nearest(features[0][: len(samples)], reference.train_features, min(NEIGHBOURS, len(dataset)))
    suspects = np.argsort(near.distances[:, 0], kind="stable")[:SHOWN_NEAREST]
    originals = np.stack([dataset.images(row) for row in near.indices[suspects]])
    random = np.random.default_rng(evaluate.seed)
    shown, beside = (random.permutation(len(images))[:SHOWN] for images in (samples, dataset))
    pictures = {
        "distances.png": distances(evaluated.estimates),
        "real_and_generated.png": real_and_generated(dataset.images(beside), samples[shown]),
        "nearest.png": nearest_images(samples[suspects], originals),
    }
    key = evaluation_key(reference.digest, origin.sampling_key, evaluate)
    evaluation = Evaluation(key=key, counts=evaluated.counts, estimates=evaluated.estimates)
    with replaced_files([METRICS, METRICS_ORIGIN, *(PLOTS / name for name in pictures)]) as folder:
        for name, picture in pictures.items():
            save(picture, folder / name)
        (folder / METRICS.name).write_text(json.dumps(evaluation.figures, indent=2) + "\n", encoding="utf-8")
        FiguresOrigin(model_digest=origin.model_digest, sampling_key=origin.sampling_key, evaluation=evaluation).write(
            folder / METRICS_ORIGIN.name
        )
    record_cost("evaluate", METRICS_ORIGIN, cost)
    for line in evaluated.lines:
        print(f"evaluate: {line}")


def open_evaluator(
    evaluate: EvaluateSettings,
    environment: Environment,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> tuple[Reference, Evaluator]:
    """Open data/reference, the real images that it was made of, and the extractors of the settings.

    Raises:
        UserError: one is missing or damaged, or they do not fit each other.
        Unavailable: the server of an extractor's file does not answer.
    """
    device = choose_device(environment.device)
    needs(PREPARED, "prepare")
    reference = Reference.load(needs(REFERENCE, "reference"), device)
    train, validation = (ImageDataset.open(PREPARED, split) for split in ("train", "validation"))
    if reference.dataset_digest != train.info.digest:
        raise UserError(f"{REFERENCE} was made of another dataset than {PREPARED}: run `dvc repro reference`")
    others = other_views(evaluate.extractors, train, validation, environment, device, ranks)
    return reference, Evaluator([domain_view(reference), *others], train, validation, evaluate)


def _read_samples(image_shape: tuple[int, int, int]) -> Images:
    file = needs(SAMPLES / "samples.npy", "sample")
    try:
        samples: Images = read_array(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}): run `dvc repro --single-item --force sample`") from error
    if samples.dtype != np.uint8 or samples.ndim != 4 or samples.shape[1:] != image_shape:
        raise UserError(
            f"{file} holds {samples.dtype} {samples.shape} and the dataset's images are uint8 {image_shape}:"
            " train and sample again with `dvc repro sample`"
        )
    return np.array(samples)
