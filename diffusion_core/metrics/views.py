"""The real images as each extractor sees them, computed once per dataset, extractor and number of images."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from diffusion_core.config.environment import Environment
from diffusion_core.data.dataset import ImageDataset
from diffusion_core.files import replaced_file
from diffusion_core.lineage.provenance import code_digest, json_digest
from diffusion_core.metrics.evaluation import View
from diffusion_core.metrics.extractors import ExtractorChoice
from diffusion_core.metrics.features import Extractor, Features, extract, spans
from diffusion_core.metrics.figures.frechet import Fid
from diffusion_core.metrics.reference import Reference
from diffusion_core.progress import Progress
from diffusion_core.runtime.distributed import Ranks

# Features of real images, each in a file whose name says of what.
CACHE = Path(".cache/features")
# What decides the features, beside the extractor's options and the images.
CODE = ("metrics/extractors", "metrics/features.py")
BLOCK = 4096
# Of the sha256 before the features.
DIGEST_BYTES = 32
# Images of a network that is much larger than the domain's own.
BATCH = 32


def domain_view(reference: Reference) -> View:
    """Return the view of the domain's own extractor."""
    return View("", reference.extractor, reference.train_features, reference.validation_features)


def other_views(
    extractors: Sequence[ExtractorChoice],
    train: ImageDataset,
    validation: ImageDataset,
    environment: Environment,
    device: torch.device,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
) -> list[View]:
    """Return the views of the extractors; features of the real images are computed, or read from .cache/features.

    Raises:
        UserError: an extractor cannot be loaded.
        Unavailable: the server of a file does not answer.
    """
    views = []
    for choice in extractors:
        network = choice.load(environment).to(device)
        known = json_digest([asdict(choice), choice.sha256, code_digest(*CODE), train.info.digest])
        of_train, of_validation = (
            _features(network, split, f"{known}-{len(split)}", ranks) for split in (train, validation)
        )
        more = (Fid(),) if choice.is_published else ()
        views.append(View(choice.name, network, of_train, of_validation, more))
    return views


def _features(network: Extractor, dataset: ImageDataset, name: str, ranks: Ranks) -> Features:
    file = CACHE / f"{name}.safetensors"
    found = _read(file, (len(dataset), network.features))
    # All processes compute them if one of them has found none.
    if ranks.all_reduce_max(int(found is None)) or found is None:
        with Progress("features", len(dataset), "images", is_shown=ranks.is_main) as progress:
            parts = [
                extract(network, dataset.images(span), BATCH, ranks, progress) for span in spans(len(dataset), BLOCK)
            ]
        found = np.concatenate(parts)
        if ranks.is_main:
            CACHE.mkdir(parents=True, exist_ok=True)
            with replaced_file(file) as beside:
                content = safetensors.numpy.save({"features": found})
                beside.write_bytes(hashlib.sha256(content).digest() + content)
    return found


def _read(file: Path, shape: tuple[int, int]) -> Features | None:
    """Return the features in a file, or None if it is missing or damaged."""
    try:
        whole = file.read_bytes()
    except OSError:
        return None
    digest, content = whole[:DIGEST_BYTES], whole[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        return None
    found: Features = safetensors.numpy.load(content)["features"]
    return found if found.shape == shape else None
