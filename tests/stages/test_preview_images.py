import numpy as np
import pytest

from diffusion_core.data.dataset import ImageDataset
from diffusion_core.pictures import grid
from diffusion_core.stages.preview import COLUMNS, IMAGES, training_images
from tests.lineage.test_dataset_version import INFO

LABELS = np.array([1, 0, 1])


def dataset(labels):
    info = INFO.model_copy(update={"image_size": (8, 8), "channels": 1})
    pixels = np.stack([np.full((8, 8, 1), 80 * index, np.uint8) for index in range(3)])
    return ImageDataset(info, [pixels], np.zeros(3, np.int64), np.arange(3), labels)


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [(None, [0, 1, 2] * 7), ([0, 1] * 10, [1, 0, 1, 2] * 5), ([1] * 20, [0, 2] * 10)],
)
def test_training_images_have_the_labels_of_the_samples(wanted, chosen):
    images = dataset(LABELS)
    shown = training_images(images, wanted)
    assert np.array_equal(shown, np.asarray(grid(images.images(np.array(chosen[:IMAGES])), columns=COLUMNS)))
