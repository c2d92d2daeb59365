"""The digits as datasets, and a reference of them that is trained once for all tests."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from diffusion_core.config.settings import ReferenceSettings
from diffusion_core.data.dataset import DatasetInfo, ImageDataset
from diffusion_core.metrics.reference import fit_reference

TRAIN = 1440


def digits(begin, end, labelled=True):
    """The shuffled digits from `begin` to `end`."""
    source = load_digits()
    order = np.random.default_rng(0).permutation(len(source.images))[begin:end]
    pixels = np.rint(source.images[order] * (255 / 16)).astype(np.uint8)[..., None]
    info = DatasetInfo(
        count=1797,
        train=TRAIN,
        validation=1797 - TRAIN,
        test=0,
        quarantined=0,
        dropped=0,
        classes=[str(digit) for digit in range(10)] if labelled else [],
        image_size=(8, 8),
        channels=1,
        shards=[],
        decoder="none",
        digest="digits",
    )
    rows = np.arange(len(pixels))
    return ImageDataset(info, [pixels], np.zeros_like(rows), rows, source.target[order] if labelled else None)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Two threads that wait for each other are slower than one where the cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def train():
    return digits(0, TRAIN)


@pytest.fixture(scope="session")
def validation():
    return digits(TRAIN, None)


@pytest.fixture(scope="session")
def reference(train, validation):
    return fit_reference(train, validation, ReferenceSettings(images=30_000))
